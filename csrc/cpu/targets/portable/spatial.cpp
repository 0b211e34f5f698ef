// Compiles spatial (few channels, and NCHW) for any machine (16-byte vectors).
#include "../portable.h"
#define TORCHCONV_INSTANCES           \
  template struct Correlate<Spatial>; \
  template struct GradWeight<Spatial>;
#include "../target_region.h"
