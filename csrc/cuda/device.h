// What the code above the kernels needs of CUDA; no CUDA header.
#pragma once

#include "../implementation.h"

#include <string>

namespace torchconv::cuda {

std::vector<Implementation> rows();

std::string version();  // of the toolkit it was built with, and the architectures: "13.0 (sm_80, sm_90)"

}  // namespace torchconv::cuda
