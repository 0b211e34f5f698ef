// Compiles grouped (depthwise, and groups of few channels) for AVX-512.
#include "../avx512.h"
#define TORCHCONV_INSTANCES template struct Operators<Grouped>;
#include "../target_region.h"
