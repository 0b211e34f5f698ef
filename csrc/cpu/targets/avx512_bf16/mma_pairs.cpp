#include "../avx512_bf16.h"
#define TORCHCONV_INSTANCES                                               \
  TORCHCONV_PRODUCTS(, Pair) template struct Products<Pair, 1, BFloat16>; \
  template struct Products<Pair, 2, BFloat16>;
#include "../target_region.h"
