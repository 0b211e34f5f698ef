// Compiles batch normalization for avx2.
#include "../../batch_norm.h"
#include "../avx2.h"
#define TORCHCONV_KERNELS "../kernels/batch_norm.h"
#include "../target_region.h"
