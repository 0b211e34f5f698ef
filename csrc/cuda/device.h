// What the code above the kernels needs of CUDA; no CUDA header. A build without CUDA has it, too: not_built.cpp.
#pragma once

#include "../implementation.h"

#include <string>

namespace torchconv::cuda {

std::vector<Implementation> rows();  // none in a build without CUDA

std::string version();  // of the toolkit, and the architectures: "13.0 (sm_80, sm_90)"; "no" without CUDA

}  // namespace torchconv::cuda
