// Compiles spatial (few channels, and NCHW) for AVX2.
#include "../avx2.h"
#define TORCHCONV_INSTANCES template struct Operators<Spatial>;
#include "../target_region.h"
