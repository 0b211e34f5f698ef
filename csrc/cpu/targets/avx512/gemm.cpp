// Compiles gemm (any geometry) for AVX-512.
#include "../avx512.h"
#define TORCHCONV_INSTANCES TORCHCONV_GEMM() template struct Operators<Gemm<Acc>>;
#include "../target_region.h"
