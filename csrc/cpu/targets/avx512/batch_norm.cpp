// Compiles batch normalization for avx512.
#include "../../batch_norm.h"
#include "../avx512.h"
#define TORCHCONV_KERNELS "../kernels/batch_norm.h"
#include "../target_region.h"
