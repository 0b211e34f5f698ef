#include "../avx512_bf16.h"
#define TORCHCONV_ROWS row<WinogradOfOneGroup>(), row<Depthwise>(), row<PairGemm>()
#define TORCHCONV_INSTANCES TORCHCONV_TILES(, BFloat16)
#include "../target_region.h"
