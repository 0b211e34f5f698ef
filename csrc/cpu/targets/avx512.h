// The avx512 target: AVX-512 F, BW, DQ and VL. See target_region.h.
#define TORCHCONV_ISA avx512
#define TORCHCONV_VECTOR "../vec/avx512.h"
#define TORCHCONV_FEATURES "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw"
