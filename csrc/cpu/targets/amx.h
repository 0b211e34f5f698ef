// The amx target: AMX tiles beside AVX-512, for bfloat16 only. See target_region.h.
#define TORCHCONV_ISA amx
#define TORCHCONV_VECTOR "../vec/avx512_bf16.h"
#define TORCHCONV_FEATURES "amx-bf16,amx-tile,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw"
#define TORCHCONV_BF16_PAIRS
#define TORCHCONV_AMX
