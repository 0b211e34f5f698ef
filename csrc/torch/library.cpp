// The operators as torch's dispatcher sees them, over the LibTorch stable ABI: schemas, dtypes, allocation.
#include "../operators.h"
#include "checks.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cctype>
#include <optional>
#include <stdexcept>
#include <vector>

namespace torchconv {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Name = std::optional<std::string>;

View view(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.dim(), tensor.sizes().data(), tensor.strides().data(),
          tensor.is_cuda() ? Device::cuda : Device::cpu};
}

std::string device_name(const Tensor& tensor) {
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "cpu";
}

void require_cuda_build() {
  const auto is_for_cuda = [](const Implementation& implementation) { return implementation.device == Device::cuda; };
  if (std::ranges::none_of(implementations(), is_for_cuda))
    throw std::runtime_error(
        "torchconv was built without CUDA, but got a tensor on cuda: build it again with TORCHCONV_CUDA=1");
}

}  // namespace

std::string dtype_name(ScalarType type) {
  const auto name = [&]() -> std::string {
    switch (type) {
      case ScalarType::Double: return "float64";
      case ScalarType::Float: return "float32";
      case ScalarType::Half: return "float16";
      case ScalarType::Byte: return "uint8";
      case ScalarType::Char: return "int8";
      case ScalarType::Short: return "int16";
      case ScalarType::Int: return "int32";
      case ScalarType::Long: return "int64";
      case ScalarType::ComplexHalf: return "complex32";
      case ScalarType::ComplexFloat: return "complex64";
      case ScalarType::ComplexDouble: return "complex128";
      default: break;  // Bool, BFloat16, Float8_e5m2, UInt16, ...: the same name but for its capitals
    }
    std::string lower = torch::headeronly::toString(type);
    for (char& letter : lower) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
    return lower;
  };
  return "torch." + name();
}

Dtype check_operands(const char* a_name, const Tensor& a, const char* b_name, const Tensor& b) {
  if (!a.defined()) throw std::runtime_error(std::string(a_name) + " must be a tensor, but got None");
  if (!b.defined()) throw std::runtime_error(std::string(b_name) + " must be a tensor, but got None");
  if (a.is_cuda() != b.is_cuda() || a.get_device_index() != b.get_device_index())
    throw std::runtime_error(std::string(a_name) + " and " + b_name + " should be on one device, but got " +
                             device_name(a) + " and " + device_name(b));
  if (a.is_cuda()) require_cuda_build();
  const ScalarType type = a.scalar_type(), b_type = b.scalar_type();
  if (type != b_type)
    throw std::runtime_error(std::string(a_name) + " type (" + dtype_name(type) + ") and " + b_name + " type (" +
                             dtype_name(b_type) + ") should be the same");
  switch (type) {
    case ScalarType::Double: return Dtype::float64;
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Half: return Dtype::float16;
    default:
      throw std::runtime_error(std::string(a_name) + " type must be float64, float32, bfloat16 or float16, but got " +
                               dtype_name(type));
  }
}

namespace {

// Until the end of the scope, the tensor's device is the current one.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) {
    if (tensor.is_cuda()) guard_.emplace(tensor.get_device_index());
  }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

// Puts a new tensor like `like` into `result`.
Allocate allocate_like(const Tensor& like, Tensor& result) {
  return [&](const std::array<int64_t, 4>& size, const std::array<int64_t, 4>& stride) {
    int32_t type, device_type, device_index;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
    AtenTensorHandle handle;
    if (aoti_torch_empty_strided(4, size.data(), stride.data(), type, device_type, device_index, &handle) != 0)
      throw std::runtime_error("cannot allocate a result of size " + to_string(size));
    result = Tensor(handle);
    return result.mutable_data_ptr();
  };
}

Tensor conv2d_bias_act_op(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias,
                          const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                          const std::vector<int64_t>& dilation, int64_t groups, const std::string& activation,
                          double slope, const Name& implementation) {
  const Dtype dtype = check_operands("Input", x, "weight", w);
  if (bias) check_operands("Input", x, "bias", *bias);
  const OnDeviceOf guard(x);
  const View bias_view = bias ? view(*bias) : View{};
  Tensor y(nullptr);
  conv2d(dtype, view(x), view(w), bias ? &bias_view : nullptr, {stride, padding, dilation, groups}, activation, slope,
         implementation.value_or(""), allocate_like(x, y));
  return y;
}

Tensor conv2d_op(const Tensor& x, const Tensor& w, const std::vector<int64_t>& stride,
                 const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                 const Name& implementation) {
  return conv2d_bias_act_op(x, w, std::nullopt, stride, padding, dilation, groups, "none", 0, implementation);
}

Tensor conv2d_grad_input_op(const Tensor& y, const Tensor& w, const std::vector<int64_t>& input_size,
                            const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                            const std::vector<int64_t>& dilation, int64_t groups, const Name& implementation) {
  const Dtype dtype = check_operands("Output gradient", y, "weight", w);
  const OnDeviceOf guard(y);
  Tensor x(nullptr);
  conv2d_grad_input(dtype, view(y), view(w), input_size, {stride, padding, dilation, groups},
                    implementation.value_or(""), allocate_like(y, x));
  return x;
}

Tensor conv2d_grad_weight_op(const Tensor& x, const Tensor& y, const std::vector<int64_t>& kernel_size,
                             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                             const std::vector<int64_t>& dilation, int64_t groups, const Name& implementation) {
  const Dtype dtype = check_operands("Input", x, "output gradient", y);
  const OnDeviceOf guard(x);
  Tensor w(nullptr);
  conv2d_grad_weight(dtype, view(x), view(y), kernel_size, {stride, padding, dilation, groups},
                     implementation.value_or(""), allocate_like(x, w));
  return w;
}

}  // namespace

// padding may depend on a symbolic input size ("same"), and groups on a batch size (vmap); the other two are constants.
#define GEOMETRY "int[] stride, SymInt[] padding, int[] dilation, SymInt groups"

// padding is top, bottom, left, right; input_size and kernel_size are height, width.
STABLE_TORCH_LIBRARY(torchconv, library) {
  library.def("conv2d(Tensor x, Tensor w, " GEOMETRY ", str? implementation=None) -> Tensor");
  library.def("conv2d_grad_input(Tensor y, Tensor w, SymInt[] input_size, " GEOMETRY
              ", str? implementation=None) -> Tensor");
  library.def("conv2d_grad_weight(Tensor x, Tensor y, SymInt[] kernel_size, " GEOMETRY
              ", str? implementation=None) -> Tensor");
  library.def("conv2d_bias_act(Tensor x, Tensor w, Tensor? bias, " GEOMETRY
              ", str activation=\"none\", float slope=0.01, str? implementation=None) -> Tensor");
}

template <class Library>
void register_operators(Library& library) {
  library.impl("conv2d", TORCH_BOX(&conv2d_op));
  library.impl("conv2d_grad_input", TORCH_BOX(&conv2d_grad_input_op));
  library.impl("conv2d_grad_weight", TORCH_BOX(&conv2d_grad_weight_op));
  library.impl("conv2d_bias_act", TORCH_BOX(&conv2d_bias_act_op));
}

STABLE_TORCH_LIBRARY_IMPL(torchconv, CPU, library) { register_operators(library); }
STABLE_TORCH_LIBRARY_IMPL(torchconv, CUDA, library) { register_operators(library); }

}  // namespace torchconv
