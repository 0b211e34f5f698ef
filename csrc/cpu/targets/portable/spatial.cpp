// Compiles spatial (few channels, and NCHW) for any machine (16-byte vectors).
#include "../portable.h"
#define TORCHCONV_INSTANCES template struct Operators<Spatial>;
#include "../target_region.h"
