// The portable implementations, in the order in which they are tried, and the tile copies (pack/tile.h) that all
// kernels share.
#include "../portable.h"
#define TORCHCONV_IMPLEMENTATIONS                                                                             \
  implementation<Linear>(), implementation<Winograd>(), implementation<Grouped>(), implementation<Spatial>(), \
      implementation<Gemm<Acc>>()
#define TORCHCONV_INSTANCES       \
  TORCHCONV_TILE_COPIES(, double) \
  TORCHCONV_TILE_COPIES(, float) TORCHCONV_TILE_COPIES(, BFloat16) TORCHCONV_TILE_COPIES(, Half)
#include "../target_region.h"
