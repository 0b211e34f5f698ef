// Compiles gemm (any geometry) for AVX2.
#include "../avx2.h"
#define TORCHCONV_INSTANCES TORCHCONV_GEMM() template struct Operators<Gemm<Acc>>;
#include "../target_region.h"
