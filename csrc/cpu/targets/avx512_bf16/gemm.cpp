// Compiles gemm on bf16 pairs (bfloat16, any geometry) for AVX512_BF16.
#include "../avx512_bf16.h"
#define TORCHCONV_INSTANCES template struct Operators<Bf16PairGemm>;
#include "../target_region.h"
