#include "../avx512_bf16.h"
#define TORCHCONV_INSTANCES            \
  template struct Correlate<PairGemm>; \
  template struct GradWeight<PairGemm>;
#include "../target_region.h"
