// The avx2 target: AVX2 with FMA and F16C. See target_region.h.
#define TORCHCONV_ISA avx2
#define TORCHCONV_VECTOR "../vec/avx2.h"
#define TORCHCONV_FEATURES "avx2,fma,f16c"
