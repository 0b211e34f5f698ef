// Compiles gemm on bf16 pairs (bfloat16, any geometry) for AVX512_BF16, and on float32 elements for winograd.
#include "../avx512_bf16.h"
#define TORCHCONV_INSTANCES TORCHCONV_GEMM_OF(BFloat16, ) template struct Operators<Bf16PairGemm>;
#include "../target_region.h"
