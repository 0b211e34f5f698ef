// AVX-512 with AVX512_BF16, for bfloat16 alone.
#define TORCHCONV_ISA avx512_bf16
#define TORCHCONV_VECTOR "../simd/avx512_bf16.h"
#define TORCHCONV_FEATURES "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw"
#define TORCHCONV_PAIRS
