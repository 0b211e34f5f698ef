// Compiles grouped (bfloat16, depthwise in channels_last, in place) for AVX512_BF16.
#include "../avx512_bf16.h"
#define TORCHCONV_INSTANCES template struct Operators<Bf16Depthwise>;
#include "../target_region.h"
