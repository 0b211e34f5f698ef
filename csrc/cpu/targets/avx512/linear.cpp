// Compiles linear (a single output pixel) for AVX-512.
#include "../avx512.h"
#define TORCHCONV_INSTANCES template struct Operators<Linear>;
#include "../target_region.h"
