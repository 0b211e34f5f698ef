#include "../portable.h"
#define TORCHCONV_INSTANCES        \
  template struct Correlate<Slab>; \
  template struct GradWeight<Slab>;
#include "../target_region.h"
