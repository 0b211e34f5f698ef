// Compiles the GEMM register tiles (micro/gemm.h) for AVX512_BF16: float32 elements, which winograd multiplies.
#include "../avx512_bf16.h"
#define TORCHCONV_INSTANCES TORCHCONV_GEMM_TILES(, float)
#include "../target_region.h"
