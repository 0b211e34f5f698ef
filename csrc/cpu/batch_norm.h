// The functions of ../batch_norm.h for each instruction set.
#pragma once

#include "instruction_sets.h"

#include "../batch_norm.h"

namespace torchconv::cpu {

struct BatchNormKernels {
  bool (*available)();
  decltype(batch_norm_statistics)* statistics;
  decltype(batch_norm_apply)* apply;
  decltype(batch_norm_gradient_sums)* gradient_sums;
  decltype(batch_norm_grad_input)* grad_input;
};

#if defined(TORCHCONV_X86)
#define TORCHCONV_BATCH_NORM_SETS(each) each(avx512) each(avx2) each(portable)
#else
#define TORCHCONV_BATCH_NORM_SETS(each) each(portable)
#endif

#define TORCHCONV_DECLARE(name)                     \
  namespace name {                                  \
  extern const BatchNormKernels batch_norm_kernels; \
  }
TORCHCONV_BATCH_NORM_SETS(TORCHCONV_DECLARE)
#undef TORCHCONV_DECLARE

}  // namespace torchconv::cpu
