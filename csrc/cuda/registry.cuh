// The implementations that run on a GPU: rows of the grid in ../registry.h. See docs/gpu.md.
#pragma once

#include "../registry.h"

namespace torchconv::cuda {

bool has_sm80();  // whether the current device has compute capability 8.0 or newer

// Plans an operator. The plan of every CUDA implementation is the problem: kernels also depend on the addresses of the
// operands, which are not known before they run.
template <bool (*supports)(const Conv&, Op)>
bool make_plan(const Conv& conv, Op op, AnyPlan& plan) {
  if (!supports(conv, op)) return false;
  plan.emplace<Conv>(conv.dtype, conv);
  return true;
}

inline bool suits_always(const Conv&, Op) { return true; }

Implementation sm80_gemm();
Implementation grouped();
Implementation reference();

}  // namespace torchconv::cuda
