// Implements device.h in builds without CUDA, where this file replaces the .cu files.
#include "device.h"

namespace torchconv::cuda {

std::vector<Implementation> all_implementations() { return {}; }

std::string version() { return "no"; }

}  // namespace torchconv::cuda
