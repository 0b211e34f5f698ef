// What the code above the kernels needs of CUDA; no CUDA header.
#pragma once

#include "../implementation.h"

#include <string>

namespace torchconv::cuda {

std::vector<Implementation> rows();

std::string version();  // of the toolkit it was built with, and the architectures: "13.0 (sm_80, sm_90)"

// Makes a device the current one of this thread until the end of the scope.
class OnDevice {
 public:
  explicit OnDevice(int index);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_;  // or -1: it was the current one
};

}  // namespace torchconv::cuda
