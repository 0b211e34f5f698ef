// The part of DLPack's C exchange interface (version 1) that fast_path.cpp uses, after https://dmlc.github.io/dlpack.
// torch.Tensor offers it as __dlpack_c_exchange_api__; torch's own copy of the header is not for stable-ABI builds.
#pragma once

#include <cstdint>

namespace torchconv::dlpack {

enum DeviceType : int32_t { cpu = 1 };
enum TypeCode : uint8_t { floating = 2, bfloat = 4 };

struct Device {
  int32_t type, index;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct ExchangeAPI {
  uint32_t major, minor;
  ExchangeAPI* previous;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object;
  void* managed_tensor_to_py_object;
  int (*tensor_from_py_object)(void* object, Tensor* out);  // fills a borrowed view; -1 with a Python error set
  void* current_work_stream;
};

}  // namespace torchconv::dlpack
