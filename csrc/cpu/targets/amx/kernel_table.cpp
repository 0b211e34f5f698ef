// The implementation for AMX, and the tile copies (pack/tile.h) that it uses.
#include "../amx.h"
#define TORCHCONV_IMPLEMENTATIONS implementation<AmxGemm>()
#define TORCHCONV_INSTANCES TORCHCONV_TILE_COPIES(, BFloat16)
#include "../target_region.h"
