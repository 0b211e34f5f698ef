// AVX-512: F, BW, DQ, VL.
#define TORCHCONV_ISA avx512
#define TORCHCONV_VECTOR "../simd/avx512.h"
#define TORCHCONV_FEATURES "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw"
