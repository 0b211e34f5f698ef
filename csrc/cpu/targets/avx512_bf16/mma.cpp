#include "../avx512_bf16.h"
#define TORCHCONV_INSTANCES TORCHCONV_PRODUCTS(, float)
#include "../target_region.h"
