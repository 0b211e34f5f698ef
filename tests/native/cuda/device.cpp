// What csrc/cuda/device.cu has for a real GPU, for an emulated one, whose memory is the machine's own.
#include "../../../csrc/cuda/device.h"
#include "../../../csrc/cuda/launch.cuh"
#include "../../../csrc/cuda/rows.cuh"

#include <cstring>

namespace torchconv::cuda {

Scratch::Scratch(int64_t bytes) {
  if (posix_memalign(&data_, 512, bytes) != 0) throw std::bad_alloc();
  std::memset(data_, 0xff, bytes);
}

Scratch::~Scratch() { std::free(data_); }

bool has_sm80() { return true; }

}  // namespace torchconv::cuda
