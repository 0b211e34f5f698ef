// Compiles spatial (few channels, and NCHW) for AVX-512.
#include "../avx512.h"
#define TORCHCONV_INSTANCES template struct Operators<Spatial>;
#include "../target_region.h"
