// The list of CUDA implementations, in the order of preference, and the description of a problem in error messages.
#include "registry.cuh"

#include "device.h"
#include "launch.cuh"

#include <sstream>

namespace torchconv::cuda {

std::vector<Implementation> all_implementations() { return {grouped(), sm80_gemm(), reference()}; }

std::string in_words(const Conv& conv) {
  std::ostringstream text;
  const Axis &rows = conv.rows, &cols = conv.cols;
  text << "x [" << conv.N << ", " << conv.C << ", " << rows.in << ", " << cols.in << "], w [" << conv.K << ", "
       << conv.C_per_group() << ", " << rows.kernel << ", " << cols.kernel << "], y [" << conv.N << ", " << conv.K
       << ", " << rows.out << ", " << cols.out << "], stride " << rows.stride << " " << cols.stride << ", padding "
       << rows.pad << " " << cols.pad << ", dilation " << rows.dilation << " " << cols.dilation << ", groups "
       << conv.groups;
  return text.str();
}

}  // namespace torchconv::cuda
