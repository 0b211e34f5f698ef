// The implementations that run on a GPU: rows of the grid in ../registry.h. See docs/gpu.md.
#pragma once

#include "../registry.h"

namespace torchconv::cuda {

bool has_sm80();  // whether the current device has compute capability 8.0 or newer

Implementation sm80_gemm();
Implementation grouped();
Implementation reference();

}  // namespace torchconv::cuda
