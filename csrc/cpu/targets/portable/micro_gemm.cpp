// Compiles the GEMM register tiles (micro/gemm.h) for any machine (16-byte vectors): float64 and float32 accumulators.
#include "../portable.h"
#define TORCHCONV_INSTANCES TORCHCONV_GEMM_TILES(, double) TORCHCONV_GEMM_TILES(, float)
#include "../target_region.h"
