// Compiles the GEMM register tiles (micro/gemm.h) for AVX512_BF16: bf16 pairs, with float32 and with bfloat16 results.
#include "../avx512_bf16.h"
#define TORCHCONV_INSTANCES                                                          \
  TORCHCONV_GEMM_TILES(, Bf16Pair) template struct GemmTiles<Bf16Pair, 1, BFloat16>; \
  template struct GemmTiles<Bf16Pair, 2, BFloat16>;
#include "../target_region.h"
