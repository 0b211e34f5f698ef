// Compiles the GEMM register tiles (micro/gemm.h) for AVX-512: float64 and float32 accumulators.
#include "../avx512.h"
#define TORCHCONV_INSTANCES TORCHCONV_GEMM_TILES(, double) TORCHCONV_GEMM_TILES(, float)
#include "../target_region.h"
