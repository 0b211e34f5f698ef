// The operators of batch normalization as torch's dispatcher sees them: schemas, checks, allocation.
#include "../batch_norm.h"
#include "../operators.h"
#include "checks.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace torchconv {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::string sizes_of(const Tensor& tensor) {
  return to_string(std::vector<int64_t>(tensor.sizes().begin(), tensor.sizes().end()));
}

// Whether the elements lie without gaps in this order of dimensions. Strides of dimensions of size 1 do not count.
bool is_dense(const Tensor& tensor, const std::vector<int64_t>& order) {
  int64_t expected = 1;
  for (auto dim = order.rbegin(); dim != order.rend(); ++dim) {
    if (tensor.size(*dim) != 1 && tensor.stride(*dim) != expected) return false;
    expected *= tensor.size(*dim);
  }
  return true;
}

// [N, C, ...] and, if it is channels_last, [N, ..., C].
BatchNormShape shape_of(const Tensor& x, Dtype dtype, const std::string& activation, double slope) {
  const int64_t dims = x.dim();
  if (dims < 2) throw std::runtime_error("expected input to have at least 2 dimensions, but got size " + sizes_of(x));
  if (!(slope >= 0 && std::isfinite(slope)))
    throw std::runtime_error("slope must be finite and not negative, but got " + std::to_string(slope));
  std::vector<int64_t> as_is, last{0};
  for (int64_t i = 0; i < dims; ++i) as_is.push_back(i);
  for (int64_t i = 2; i < dims; ++i) last.push_back(i);
  last.push_back(1);
  const bool channels_last = is_dense(x, last);
  if (!channels_last && !is_dense(x, as_is))
    throw std::runtime_error("expected input to be contiguous or channels_last, but got size " + sizes_of(x) +
                             " with other strides");
  int64_t pixels = 1;
  for (int64_t i = 2; i < dims; ++i) pixels *= x.size(i);
  return {dtype, x.size(0), x.size(1), pixels, channels_last && x.size(1) > 1, activation_named(activation, false),
          slope};
}

// A tensor of the size, dtype and strides of x.
void check_like(const Tensor& x, const char* name, const Tensor& tensor) {
  check_operands("Input", x, name, tensor);
  if (!std::ranges::equal(tensor.sizes(), x.sizes()))
    throw std::runtime_error(std::string("expected ") + name + " to be of size " + sizes_of(x) +
                             ", like the input, but got " + sizes_of(tensor));
  for (int64_t i = 0; i < x.dim(); ++i)
    if (x.size(i) != 1 && x.stride(i) != tensor.stride(i))
      throw std::runtime_error(std::string("expected ") + name + " to have the strides of the input");
}

ScalarType type_of_channels(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A number of each channel of x, of its dtype or of that of the statistics.
void check_channels(const Tensor& x, const char* name, const Tensor& tensor) {
  if (!tensor.defined()) throw std::runtime_error(std::string(name) + " must be a tensor, but got None");
  if (tensor.scalar_type() != type_of_channels(x) && tensor.scalar_type() != x.scalar_type())
    throw std::runtime_error(std::string("expected ") + name + " to be of " + dtype_name(type_of_channels(x)) +
                             " for input of " + dtype_name(x.scalar_type()) + ", but got " +
                             dtype_name(tensor.scalar_type()));
  if (tensor.is_cuda()) throw std::runtime_error(std::string("expected ") + name + " to be on the cpu, like the input");
  if (tensor.dim() != 1 || tensor.size(0) != x.size(1))
    throw std::runtime_error(std::string("expected ") + name + " to have " + std::to_string(x.size(1)) +
                             " elements, the channels of the input, but got size " + sizes_of(tensor));
}

// Its values, or `otherwise` if there is no tensor.
template <class T>
std::vector<T> read_channels(const Tensor& x, const char* name, const std::optional<Tensor>& tensor, T otherwise) {
  std::vector<T> values(x.size(1), otherwise);
  if (!tensor) return values;
  check_channels(x, name, *tensor);
  const int64_t stride = tensor->stride(0);
  const auto read = [&](auto type) {
    const auto* from = static_cast<const decltype(type)*>(tensor->data_ptr());
    for (size_t c = 0; c < values.size(); ++c) values[c] = T(from[int64_t(c) * stride]);
  };
  switch (tensor->scalar_type()) {
    case ScalarType::Double: read(double()); break;
    case ScalarType::Float: read(float()); break;
    case ScalarType::BFloat16: read(torch::headeronly::BFloat16()); break;
    default: read(torch::headeronly::Half()); break;
  }
  return values;
}

Tensor empty(const std::vector<int64_t>& size, const std::vector<int64_t>& stride, ScalarType type) {
  AtenTensorHandle handle;
  if (aoti_torch_empty_strided(int64_t(size.size()), size.data(), stride.data(), int32_t(type),
                               aoti_torch_device_type_cpu(), 0, &handle) != 0)
    throw std::runtime_error("cannot allocate a result of size " + to_string(size));
  return Tensor(handle);
}

Tensor empty_like(const Tensor& x) {
  return empty({x.sizes().begin(), x.sizes().end()}, {x.strides().begin(), x.strides().end()}, x.scalar_type());
}

Tensor empty_channels(const Tensor& x) { return empty({x.size(1)}, {1}, type_of_channels(x)); }

constexpr int64_t max_channels = 1 << 16;  // what is computed for each channel stays in the working memory

BatchNormShape check_input(const Tensor& x, const std::string& activation, double slope) {
  const Dtype dtype = check_operands("Input", x, "input", x);
  if (x.is_cuda()) throw std::runtime_error("expected the input to be on the cpu");
  if (x.numel() == 0) throw std::runtime_error("expected input not to be empty, but got size " + sizes_of(x));
  if (x.dim() > 1 && x.size(1) > max_channels)
    throw std::runtime_error("expected at most " + std::to_string(max_channels) + " channels, but got size " +
                             sizes_of(x));
  return shape_of(x, dtype, activation, slope);
}

// Calls body(T()) for the type T of statistics.
template <class Body>
auto with_channel_type(const Tensor& x, const Body& body) {
  return x.scalar_type() == ScalarType::Double ? body(double()) : body(float());
}

// Whether its gradient takes longer than memory does.
bool is_costly(Activation activation) {
  return activation == Activation::sigmoid || activation == Activation::tanh || activation == Activation::silu ||
         activation == Activation::gelu;
}

// The per-channel factor of x - mean.
template <class T>
std::vector<T> scale_of(std::vector<T> weight, const T* rstd) {
  for (size_t c = 0; c < weight.size(); ++c) weight[c] *= rstd[c];
  return weight;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, const std::optional<Tensor>& weight,
                                                   const std::optional<Tensor>& bias,
                                                   const std::optional<Tensor>& residual,
                                                   const std::optional<Tensor>& given_mean,
                                                   const std::optional<Tensor>& given_variance, double eps,
                                                   const std::string& activation, double slope) {
  const BatchNormShape shape = check_input(x, activation, slope);
  if (residual) check_like(x, "residual", *residual);
  if (given_mean.has_value() != given_variance.has_value())
    throw std::runtime_error("expected both mean and variance, or neither of them");
  Tensor z = empty_like(x), mean = empty_channels(x), rstd = empty_channels(x), variance = empty_channels(x);
  return with_channel_type(x, [&](auto type) {
    using T = decltype(type);
    T* means = static_cast<T*>(mean.mutable_data_ptr());
    T* rstds = static_cast<T*>(rstd.mutable_data_ptr());
    T* variances = static_cast<T*>(variance.mutable_data_ptr());
    const double count = double(shape.N) * double(shape.P);
    if (given_mean) {
      std::ranges::copy(read_channels<T>(x, "mean", given_mean, 0), means);
      std::ranges::copy(read_channels<T>(x, "variance", given_variance, 0), variances);
      for (int64_t c = 0; c < shape.C; ++c) rstds[c] = T(1 / std::sqrt(double(variances[c]) + eps));
    } else {
      std::vector<double> exact_means(shape.C), exact(shape.C);
      batch_norm_kernels().statistics(shape, x.data_ptr(), exact_means.data(), exact.data());
      for (int64_t c = 0; c < shape.C; ++c) {
        means[c] = T(exact_means[c]);
        rstds[c] = T(1 / std::sqrt(exact[c] + eps));
        variances[c] = T(exact[c] * (count / (count - 1)));
      }
    }
    const std::vector<T> scale = scale_of(read_channels<T>(x, "weight", weight, 1), rstds);
    const std::vector<T> shift = read_channels<T>(x, "bias", bias, 0);
    batch_norm_kernels().apply(shape, x.data_ptr(), {means, scale.data(), shift.data()},
                               residual ? residual->data_ptr() : nullptr, z.mutable_data_ptr());
    return std::make_tuple(z, mean, rstd, variance);
  });
}

// z once more, with the same bits.
Tensor apply(const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
             const std::optional<Tensor>& residual, const Tensor& mean, const Tensor& rstd,
             const std::string& activation, double slope) {
  const BatchNormShape shape = check_input(x, activation, slope);
  if (residual) check_like(x, "residual", *residual);
  Tensor z = empty_like(x);
  with_channel_type(x, [&](auto type) {
    using T = decltype(type);
    const std::vector<T> means = read_channels<T>(x, "mean", mean, 0), rstds = read_channels<T>(x, "rstd", rstd, 0);
    const std::vector<T> scale = scale_of(read_channels<T>(x, "weight", weight, 1), rstds.data());
    const std::vector<T> shift = read_channels<T>(x, "bias", bias, 0);
    batch_norm_kernels().apply(shape, x.data_ptr(), {means.data(), scale.data(), shift.data()},
                               residual ? residual->data_ptr() : nullptr, z.mutable_data_ptr());
  });
  return z;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& dz, const Tensor& x, const std::optional<Tensor>& z,
                                                    const std::optional<Tensor>& weight,
                                                    const std::optional<Tensor>& bias, const Tensor& mean,
                                                    const Tensor& rstd, bool training, const std::string& activation,
                                                    double slope, bool needs_input_gradient) {
  BatchNormShape shape = check_input(x, activation, slope);
  check_like(x, "output gradient", dz);
  if (z) {
    check_like(x, "output", *z);
    if (!has_derivative_of_result(shape.activation))
      throw std::runtime_error("expected no output for activation \"" + activation + "\", which needs its input");
  }
  Tensor sum = empty_channels(x), product = empty_channels(x);
  const auto optional_like = [&](bool wanted) { return wanted ? empty_like(x) : empty({0}, {1}, x.scalar_type()); };
  Tensor g = optional_like(z.has_value()), dx = optional_like(needs_input_gradient);
  return with_channel_type(x, [&](auto type) {
    using T = decltype(type);
    const std::vector<T> means = read_channels<T>(x, "mean", mean, 0), rstds = read_channels<T>(x, "rstd", rstd, 0);
    const std::vector<T> scale = scale_of(read_channels<T>(x, "weight", weight, 1), rstds.data());
    const std::vector<T> shift = read_channels<T>(x, "bias", bias, 0);
    const BatchNormChannels channels{means.data(), scale.data(), shift.data()};
    T *sums = static_cast<T*>(sum.mutable_data_ptr()), *products = static_cast<T*>(product.mutable_data_ptr());
    // g is stored in dx, rather than computed twice.
    const bool in_dx = !z && needs_input_gradient && is_costly(shape.activation);
    void* stored = in_dx ? dx.mutable_data_ptr() : z ? g.mutable_data_ptr() : nullptr;
    batch_norm_kernels().gradient_sums(shape, dz.data_ptr(), x.data_ptr(), z ? z->data_ptr() : nullptr, channels,
                                       stored, sums, products);
    if (needs_input_gradient) {
      std::vector<T> factor(shape.C), offset(shape.C);
      const double count = double(shape.N) * double(shape.P);
      for (int64_t c = 0; training && c < shape.C; ++c) {
        factor[c] = T(-double(scale[c]) * rstds[c] * rstds[c] * products[c] / count);
        offset[c] = T(-double(scale[c]) * sums[c] / count);
      }
      if (stored) shape.activation = Activation::none;  // g is the gradient before it
      batch_norm_kernels().grad_input(shape, stored ? stored : dz.data_ptr(), x.data_ptr(), channels,
                                      training ? factor.data() : nullptr, training ? offset.data() : nullptr,
                                      dx.mutable_data_ptr());
    }
    for (int64_t c = 0; c < shape.C; ++c) products[c] *= rstds[c];
    return std::make_tuple(dx, product, sum, g);
  });
}

Tensor channel_products(const Tensor& a, const Tensor& b) {
  const BatchNormShape shape = check_input(a, "none", 0);
  check_like(a, "other", b);
  std::vector<int64_t> size(a.dim(), 1), stride(a.dim(), 1);
  size[0] = shape.N;
  size[1] = stride[0] = shape.C;
  Tensor sums = empty(size, stride, a.scalar_type());
  batch_norm_kernels().channel_products(shape, a.data_ptr(), b.data_ptr(), sums.mutable_data_ptr());
  return sums;
}

}  // namespace

// x, z, dz and the residual are dense, contiguous or channels_last, and all of one size, dtype and layout. Tensors of
// channels are [C], of that dtype or of float32 (float64 for float64); results are of the latter.
//
// batch_norm: z, mean, 1 / sqrt(variance + eps), variance. If mean and variance are not given, they are those of x; the
// resulting variance is then the unbiased one.
// batch_norm_backward: the gradients of x (empty unless it is needed), weight and bias, and that of the residual if z
// is given, which there has to be with a residual and an activation; otherwise it is dz. `training`: whether mean and
// variance were those of x.
// batch_norm_apply: z, as batch_norm has computed it.
// channel_products: [N, C, 1, ...], the sums of a * b over all pixels.
STABLE_TORCH_LIBRARY_FRAGMENT(torchconv, library) {
  library.def(
      "batch_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mean, Tensor? variance, "
      "float eps, str activation, float slope) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "batch_norm_backward(Tensor dz, Tensor x, Tensor? z, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, "
      "bool training, str activation, float slope, bool needs_input_gradient) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "batch_norm_apply(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor mean, Tensor rstd, "
      "str activation, float slope) -> Tensor");
  library.def("channel_products(Tensor a, Tensor b) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(torchconv, CPU, library) {
  library.impl("batch_norm", TORCH_BOX(&forward));
  library.impl("batch_norm_backward", TORCH_BOX(&backward));
  library.impl("batch_norm_apply", TORCH_BOX(&apply));
  library.impl("channel_products", TORCH_BOX(&channel_products));
}

}  // namespace torchconv
