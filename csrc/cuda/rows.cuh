// The rows of the grid that run on a GPU. See docs/gpu.md.
#pragma once

#include "../implementation.h"

namespace torchconv::cuda {

bool has_sm80();  // the current device

Implementation sm80_gemm();
Implementation slab();
Implementation reference();

}  // namespace torchconv::cuda
