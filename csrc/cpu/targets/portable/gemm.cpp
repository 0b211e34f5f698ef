// Compiles gemm (any geometry) for any machine (16-byte vectors).
#include "../portable.h"
#define TORCHCONV_INSTANCES TORCHCONV_GEMM() template struct Operators<Gemm<Acc>>;
#include "../target_region.h"
