// Compiles grouped (depthwise, and groups of few channels) for AVX2.
#include "../avx2.h"
#define TORCHCONV_INSTANCES template struct Operators<Grouped>;
#include "../target_region.h"
