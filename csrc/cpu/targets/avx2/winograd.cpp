// Compiles winograd (3x3, stride 1) for AVX2.
#include "../avx2.h"
#define TORCHCONV_INSTANCES template struct Operators<Winograd>;
#include "../target_region.h"
