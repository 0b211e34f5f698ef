#include "../portable.h"
#define TORCHCONV_ROWS row<Winograd>(), row<Slab>(), row<Planes>(), row<Gemm<Sum>>()
#define TORCHCONV_INSTANCES \
  TORCHCONV_TILES(, double) TORCHCONV_TILES(, float) TORCHCONV_TILES(, BFloat16) TORCHCONV_TILES(, Half)
#include "../target_region.h"
