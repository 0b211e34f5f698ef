#include "../portable.h"
#define TORCHCONV_INSTANCES            \
  template struct Correlate<Winograd>; \
  template struct GradWeight<Winograd>;
#include "../target_region.h"
