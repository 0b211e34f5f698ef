// The current device and stream as torch knows them. The functions are torch's, in its C interface, and weak: beside a
// torch for the CPU alone the extension loads as well, and nothing calls them.
#include "device.h"
#include "launch.cuh"
#include "rows.cuh"

extern "C" {
__attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
__attribute__((weak)) int32_t aoti_torch_cuda_caching_allocator_raw_alloc(uint64_t bytes, void** data);
__attribute__((weak)) int32_t aoti_torch_cuda_caching_allocator_raw_delete(void* data);
}

namespace torchconv::cuda {

namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + " failed: " + cudaGetErrorString(error));
}

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

}  // namespace

OnDevice::OnDevice(int index) : before_(current_device()) {
  if (index == before_) {
    before_ = -1;
  } else {
    check(cudaSetDevice(index), "cudaSetDevice");
  }
}

OnDevice::~OnDevice() {
  if (before_ >= 0) cudaSetDevice(before_);
}

void* current_stream() {
  void* stream = nullptr;
  if (!aoti_torch_get_current_cuda_stream || aoti_torch_get_current_cuda_stream(current_device(), &stream) != 0)
    throw std::runtime_error("this torch has no current CUDA stream");
  return stream;
}

Scratch::Scratch(int64_t bytes) {
  if (bytes == 0) return;
  if (!aoti_torch_cuda_caching_allocator_raw_alloc || aoti_torch_cuda_caching_allocator_raw_alloc(bytes, &data_) != 0)
    throw std::runtime_error("cannot allocate " + std::to_string(bytes) + " bytes of scratch memory on the GPU");
}

Scratch::~Scratch() {
  if (data_) aoti_torch_cuda_caching_allocator_raw_delete(data_);
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
