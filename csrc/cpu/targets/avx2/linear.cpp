// Compiles linear (a single output pixel) for AVX2.
#include "../avx2.h"
#define TORCHCONV_INSTANCES template struct Operators<Linear>;
#include "../target_region.h"
