// The current stream and scratch memory, from torch's C interface (torch/csrc/inductor/aoti_torch/c/shim.h). Its
// functions are not linked but looked up at run time in the libtorch_cuda.so that torch has loaded, so that the
// extension also loads beside a CPU-only build of torch.
#include "device.h"
#include "launch.cuh"
#include "registry.cuh"

#include <dlfcn.h>

namespace torchconv::cuda {

namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + " failed: " + cudaGetErrorString(error));
}

// Looks up a function of torch's C interface. It returns 0 on success.
template <class... Arguments>
auto torch_symbol(const char* name) {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* function = library ? dlsym(library, name) : nullptr;
  if (!function) throw std::runtime_error(std::string("this torch has no ") + name);
  return reinterpret_cast<int32_t (*)(Arguments...)>(function);
}

}  // namespace

void* current_stream() {
  static const auto get = torch_symbol<int32_t, void**>("aoti_torch_get_current_cuda_stream");
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  void* stream = nullptr;
  if (get(device, &stream) != 0) throw std::runtime_error("torch has no current stream");
  return stream;
}

Scratch::Scratch(int64_t bytes) {
  static const auto allocate = torch_symbol<uint64_t, void**>("aoti_torch_cuda_caching_allocator_raw_alloc");
  if (bytes > 0 && allocate(bytes, &data_) != 0)
    throw std::runtime_error("cannot allocate " + std::to_string(bytes) + " bytes of scratch memory on the GPU");
}

Scratch::~Scratch() {
  if (!data_) return;
  static const auto free = torch_symbol<void*>("aoti_torch_cuda_caching_allocator_raw_delete");
  free(data_);
}

bool has_sm80() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 8;
}

std::string version() {
  std::string text = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  const char* before = " (";
  for (const int architecture : {__CUDA_ARCH_LIST__}) {
    text += before + ("sm_" + std::to_string(architecture / 10));
    before = ", ";
  }
  return text + ")";
}

}  // namespace torchconv::cuda
