// Compiles gemm (any geometry) for AVX-512.
#include "../avx512.h"
#define TORCHCONV_INSTANCES             \
  template struct Correlate<Gemm<Acc>>; \
  template struct GradWeight<Gemm<Acc>>;
#include "../target_region.h"
