// Compiles winograd (3x3, stride 1) for any machine (16-byte vectors).
#include "../portable.h"
#define TORCHCONV_INSTANCES template struct Operators<Winograd>;
#include "../target_region.h"
