// Compiles batch normalization for portable.
#include "../../batch_norm.h"
#include "../portable.h"
#define TORCHCONV_KERNELS "../kernels/batch_norm.h"
#include "../target_region.h"
