#include "operators.h"

#include "torch/tf32.h"

#include <algorithm>
#include <stdexcept>

namespace torchconv {

namespace {

using Four = std::array<int64_t, 4>;

// The stride of a single element is never used, and may be anything: none is taken that lies beyond all addresses.
Strides strides(const View& view) {
  const auto of = [&](int d) { return view.size[d] > 1 || view.stride[d] < int64_t(1) << 48 ? view.stride[d] : 0; };
  return {of(0), of(1), of(2), of(3)};
}

Strides strides(const Four& stride) { return {stride[0], stride[1], stride[2], stride[3]}; }

bool is_empty(const Four& size) { return size[0] == 0 || size[1] == 0 || size[2] == 0 || size[3] == 0; }

void set_operands(Conv& conv, Dtype dtype, Device device, const Strides& x, const Strides& w, const Strides& y) {
  conv.dtype = dtype;
  conv.device = device;
  conv.x = x;
  conv.w = w;
  conv.y = y;
  conv.tf32 = device == Device::cuda && dtype == Dtype::float32 && allows_tf32();
}

// torch's own test of a tensor's memory format: the strides alone tell, and sizes of 1 or 0 count as contiguous.
bool is_channels_last(const View& view) {
  if (view.stride[1] == 0 || std::count(view.size, view.size + 4, 0) > 0) return false;
  int64_t least = 0;
  for (int d : {1, 3, 2, 0}) {
    const int64_t size = view.size[d], stride = view.stride[d];
    if (stride < least || (d == 0 && least == view.stride[1])) return false;
    least = size > 1 ? stride * size : stride;
  }
  return true;
}

// The result is channels_last if either operand is.
Four result_strides(const Four& size, const View& a, const View& b) {
  if (is_channels_last(a) || is_channels_last(b)) return {size[1] * size[3] * size[2], 1, size[1] * size[3], size[1]};
  const auto at_least_1 = [](int64_t n) { return n > 1 ? n : 1; };
  const int64_t h = at_least_1(size[3]), c = h * at_least_1(size[2]), n = c * at_least_1(size[1]);
  return {n, c, h, 1};
}

}  // namespace

Activation activation_named(const std::string& name, bool of_conv2d) {
  static constexpr std::pair<const char*, Activation> names[] = {
      {"none", Activation::none},   {"relu", Activation::relu},           {"leaky_relu", Activation::leaky_relu},
      {"relu6", Activation::relu6}, {"sigmoid", Activation::sigmoid},     {"tanh", Activation::tanh},
      {"silu", Activation::silu},   {"hardswish", Activation::hardswish}, {"hardsigmoid", Activation::hardsigmoid},
      {"gelu", Activation::gelu},
  };
  std::string all;
  for (const auto& [known, activation] : names) {
    if (of_conv2d && !has_derivative_of_result(activation)) break;
    if (name == known) return activation;
    all += (all.empty() ? "" : ", ") + std::string(known);
  }
  throw std::runtime_error("activation must be one of " + all + ", but got \"" + name + "\"");
}

Call plan_conv2d(Dtype dtype, const View& x, const View& w, const Geometry& geometry,
                 const std::string& implementation) {
  Conv conv = check_forward(x.sizes(), w.sizes(), geometry);
  const Four size{conv.N, conv.K, conv.rows.out, conv.cols.out}, stride = result_strides(size, x, w);
  set_operands(conv, dtype, x.device, strides(x), strides(w), strides(stride));
  return Call(Op::forward, conv, size, stride, implementation);
}

Call plan_grad_input(Dtype dtype, const View& y, const View& w, Sizes input_size, const Geometry& geometry,
                     const std::string& implementation) {
  Conv conv = check_grad_input(y.sizes(), w.sizes(), input_size, geometry);
  const Four size{conv.N, conv.C, conv.rows.in, conv.cols.in}, stride = result_strides(size, y, w);
  set_operands(conv, dtype, y.device, strides(stride), strides(w), strides(y));
  return Call(Op::grad_input, conv, size, stride, implementation);
}

Call plan_grad_weight(Dtype dtype, const View& x, const View& y, Sizes kernel_size, const Geometry& geometry,
                      const std::string& implementation) {
  Conv conv = check_grad_weight(x.sizes(), y.sizes(), kernel_size, geometry);
  const Four size{conv.K, conv.C_per_group(), conv.rows.kernel, conv.cols.kernel}, stride = result_strides(size, x, y);
  set_operands(conv, dtype, x.device, strides(x), strides(stride), strides(y));
  return Call(Op::grad_weight, conv, size, stride, implementation);
}

void conv2d(Dtype dtype, const View& x, const View& w, const View* bias, const Geometry& geometry,
            const std::string& activation, double slope, const std::string& implementation, const Allocate& allocate) {
  const Call call = plan_conv2d(dtype, x, w, geometry, implementation);
  if (bias && (bias->dim != 1 || bias->size[0] != call.conv.K))
    throw std::runtime_error("Given weight of size " + to_string(w.sizes()) +
                             ", expected bias to be 1-dimensional with " + std::to_string(call.conv.K) +
                             " elements, but got bias of size " + to_string(bias->sizes()) + " instead");
  Epilogue epilogue;
  if (bias) {
    epilogue.bias = bias->data;
    epilogue.bias_stride = bias->stride[0];
  }
  epilogue.activation = activation_named(activation, true);
  epilogue.slope = slope;
  void* y = allocate(call.size, call.stride);
  if (!is_empty(call.size)) call.implementation->forward(call.plan, x.data, w.data, y, epilogue);
}

void conv2d_grad_input(Dtype dtype, const View& y, const View& w, Sizes input_size, const Geometry& geometry,
                       const std::string& implementation, const Allocate& allocate) {
  const Call call = plan_grad_input(dtype, y, w, input_size, geometry, implementation);
  void* x = allocate(call.size, call.stride);
  if (!is_empty(call.size)) call.implementation->grad_input(call.plan, y.data, w.data, x);
}

void conv2d_grad_weight(Dtype dtype, const View& x, const View& y, Sizes kernel_size, const Geometry& geometry,
                        const std::string& implementation, const Allocate& allocate) {
  const Call call = plan_grad_weight(dtype, x, y, kernel_size, geometry, implementation);
  void* w = allocate(call.size, call.stride);
  if (!is_empty(call.size)) call.implementation->grad_weight(call.plan, x.data, y.data, w);
}

}  // namespace torchconv
