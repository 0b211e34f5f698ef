// Compiles grouped (bfloat16, depthwise in channels_last, in place) for AVX512_BF16.
#include "../avx512_bf16.h"
#define TORCHCONV_INSTANCES                 \
  template struct Correlate<Bf16Depthwise>; \
  template struct GradWeight<Bf16Depthwise>;
#include "../target_region.h"
