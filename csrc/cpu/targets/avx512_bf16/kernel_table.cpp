// The implementations for AVX512_BF16, in the order in which they are tried, and the tile copies (pack/tile.h) that
// they share.
#include "../avx512_bf16.h"
#define TORCHCONV_IMPLEMENTATIONS \
  implementation<Bf16Winograd>(), implementation<Bf16Depthwise>(), implementation<Bf16PairGemm>()
#define TORCHCONV_INSTANCES TORCHCONV_TILE_COPIES(, BFloat16)
#include "../target_region.h"
