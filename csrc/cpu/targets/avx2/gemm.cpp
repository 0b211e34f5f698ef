// Compiles gemm (any geometry) for AVX2.
#include "../avx2.h"
#define TORCHCONV_INSTANCES             \
  template struct Correlate<Gemm<Acc>>; \
  template struct GradWeight<Gemm<Acc>>;
#include "../target_region.h"
