// The kernels of batch normalization (../batch_norm.h) of each instruction set. AVX512_BF16 would add nothing to
// AVX-512.
#pragma once

#include "instruction_sets.h"

#include "../batch_norm.h"

namespace torchconv::cpu {

#if defined(TORCHCONV_X86) && !defined(TORCHCONV_AMX_ONLY) && !defined(TORCHCONV_REFERENCE_ONLY)
#define TORCHCONV_BATCH_NORM_SETS(each) each(avx512) each(avx2) each(portable)
#else
#define TORCHCONV_BATCH_NORM_SETS(each) each(portable)
#endif

#define TORCHCONV_DECLARE(name)                   \
  namespace name {                                \
  extern const BatchNormKernels batch_norm_table; \
  }
TORCHCONV_BATCH_NORM_SETS(TORCHCONV_DECLARE)
#undef TORCHCONV_DECLARE

}  // namespace torchconv::cpu
