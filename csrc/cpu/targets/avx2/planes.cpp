#include "../avx2.h"
#define TORCHCONV_INSTANCES          \
  template struct Correlate<Planes>; \
  template struct GradWeight<Planes>;
#include "../target_region.h"
