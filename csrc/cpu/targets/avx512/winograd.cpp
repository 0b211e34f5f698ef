// Compiles winograd (3x3, stride 1) for AVX-512.
#include "../avx512.h"
#define TORCHCONV_INSTANCES template struct Operators<Winograd>;
#include "../target_region.h"
