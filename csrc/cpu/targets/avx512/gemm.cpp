#include "../avx512.h"
#define TORCHCONV_INSTANCES             \
  template struct Correlate<Gemm<Sum>>; \
  template struct GradWeight<Gemm<Sum>>;
#include "../target_region.h"
