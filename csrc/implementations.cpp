#include "cpu/implementations.h"
#ifdef TORCHCONV_CUDA
#include "cuda/device.h"
#endif

namespace torchconv {

const std::vector<Implementation>& implementations() {
  static const std::vector<Implementation> rows = [] {
    std::vector<Implementation> all = cpu::rows();
#ifdef TORCHCONV_CUDA
    for (const Implementation& row : cuda::rows()) all.push_back(row);
#endif
    return all;
  }();
  return rows;
}

}  // namespace torchconv
