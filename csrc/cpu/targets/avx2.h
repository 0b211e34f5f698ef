// AVX2 with FMA and F16C.
#define TORCHCONV_ISA avx2
#define TORCHCONV_VECTOR "../simd/avx2.h"
#define TORCHCONV_FEATURES "avx2,fma,f16c"
