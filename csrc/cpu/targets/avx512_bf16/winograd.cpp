// Compiles winograd (bfloat16, 3x3, stride 1; accumulates in float32) for AVX512_BF16.
#include "../avx512_bf16.h"
#define TORCHCONV_INSTANCES template struct Operators<Bf16Winograd>;
#include "../target_region.h"
