// The interface of the CUDA kernels to the rest of the library. It includes no CUDA header; not_built.cpp implements it
// in builds without CUDA.
#pragma once

#include "../registry.h"

#include <string>

namespace torchconv::cuda {

std::vector<Implementation> all_implementations();  // empty in a build without CUDA

// The version of the CUDA toolkit and the architectures built for, as in "13.0 (sm_80, sm_90)". "no" without CUDA.
std::string version();

}  // namespace torchconv::cuda
