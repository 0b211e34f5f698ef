#include "../avx512.h"
#define TORCHCONV_INSTANCES TORCHCONV_PRODUCTS(, double) TORCHCONV_PRODUCTS(, float)
#include "../target_region.h"
