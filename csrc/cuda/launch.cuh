// Launches on the stream that torch has current, scratch memory from torch's allocator, and errors with the problem's
// own words. tests/native/cuda has the same functions for an emulated device.
#pragma once

#include "../conv.h"

#include <cstddef>
#include <stdexcept>
#include <string>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "launch_emulation.h"
#endif

namespace torchconv::cuda {

std::string in_words(const Conv& conv);  // "x [8, 3, 224, 224], w [64, 3, 7, 7], ..."

// What scratch memory and launches belong to: the current device and its current stream.
void* current_stream();

// Memory of the current device that is given back in the order of the current stream: whoever gets it next runs later.
class Scratch {
 public:
  explicit Scratch(int64_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// A kernel on `blocks` blocks of `threads` threads each, with so many bytes of shared memory. `name` and `conv` are for
// the error.
#ifdef __CUDACC__
template <class... Parameters, class... Arguments>
void launch(const char* name, const Conv& conv, void (*kernel)(Parameters...), int64_t blocks, int threads, int shared,
            const Arguments&... arguments) {
  const auto check = [&](cudaError_t error) {
    if (error != cudaSuccess)
      throw std::runtime_error(std::string(name) + " failed: " + cudaGetErrorString(error) + " (" + in_words(conv) +
                               ")");
  };
  if (blocks == 0) return;
  // By default a kernel may have 48 KiB in all, those included that it declares itself.
  if (shared > 0) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  [&](Parameters... values) {
    void* addresses[] = {const_cast<void*>(static_cast<const void*>(&values))...};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                           dim3(static_cast<unsigned>(threads)), addresses, shared,
                           static_cast<cudaStream_t>(current_stream())));
  }(arguments...);
}
#endif

constexpr int64_t most_blocks = 0x7fffffff;  // of a launch

}  // namespace torchconv::cuda
