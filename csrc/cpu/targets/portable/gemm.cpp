// Compiles gemm (any geometry) for any machine (16-byte vectors).
#include "../portable.h"
#define TORCHCONV_INSTANCES             \
  template struct Correlate<Gemm<Acc>>; \
  template struct GradWeight<Gemm<Acc>>;
#include "../target_region.h"
