// Kernel launches on torch's current stream, scratch memory from torch's caching allocator, and launch errors that
// describe the problem. tests/native/cuda implements the same functions for an emulated GPU.
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

// A description of the problem for error messages: "x [8, 3, 224, 224], w [64, 3, 7, 7], ..."
std::string in_words(const Conv& conv);

// Torch's current stream (a cudaStream_t) of the current device. Launches and scratch memory use it.
void* current_stream();

// Memory on the current device. It is freed in stream order: the destructor may run before the kernels that use the
// memory have finished, since the next owner's kernels run after them on the same stream.
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

// Launches a kernel on `blocks` thread blocks of `threads` threads, with `shared` bytes of dynamic shared memory.
// Throws std::runtime_error if the launch fails; `name` and `conv` only appear in its message.
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
  // Without this attribute a kernel is limited to 48 KiB of static and dynamic shared memory together.
  if (shared > 0) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  [&](Parameters... values) {
    void* addresses[] = {const_cast<void*>(static_cast<const void*>(&values))...};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                           dim3(static_cast<unsigned>(threads)), addresses, shared,
                           static_cast<cudaStream_t>(current_stream())));
  }(arguments...);
}
#endif

constexpr int64_t max_blocks = 0x7fffffff;  // in one launch (the limit of gridDim.x)

}  // namespace torchconv::cuda
