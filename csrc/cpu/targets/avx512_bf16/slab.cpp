#include "../avx512_bf16.h"
#define TORCHCONV_INSTANCES             \
  template struct Correlate<Depthwise>; \
  template struct GradWeight<Depthwise>;
#include "../target_region.h"
