// device.h in a build without CUDA, which has this file in place of the .cu files.
#include "device.h"

namespace torchconv::cuda {

std::vector<Implementation> rows() { return {}; }

std::string version() { return "no"; }

}  // namespace torchconv::cuda
