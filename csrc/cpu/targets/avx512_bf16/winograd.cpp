#include "../avx512_bf16.h"
#define TORCHCONV_INSTANCES                      \
  template struct Correlate<WinogradOfOneGroup>; \
  template struct GradWeight<WinogradOfOneGroup>;
#include "../target_region.h"
