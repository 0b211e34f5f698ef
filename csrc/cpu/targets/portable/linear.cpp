// Compiles linear (a single output pixel) for any machine (16-byte vectors).
#include "../portable.h"
#define TORCHCONV_INSTANCES template struct Operators<Linear>;
#include "../target_region.h"
