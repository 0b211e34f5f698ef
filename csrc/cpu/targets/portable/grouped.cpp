// Compiles grouped (depthwise, and groups of few channels) for any machine (16-byte vectors).
#include "../portable.h"
#define TORCHCONV_INSTANCES template struct Operators<Grouped>;
#include "../target_region.h"
