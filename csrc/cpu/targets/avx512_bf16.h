// The avx512_bf16 target: AVX-512 with AVX512_BF16, for bfloat16 only. See target_region.h.
#define TORCHCONV_ISA avx512_bf16
#define TORCHCONV_VECTOR "../vec/avx512_bf16.h"
#define TORCHCONV_FEATURES "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw"
#define TORCHCONV_BF16_PAIRS
