// The operators on plain views: check, allocate, choose the implementation, run. Torch's tensors reach them in
// two ways: through the dispatcher (torch/library.cpp), and around it where nothing but autograd listens
// (torch/fast_path.cpp).
#pragma once

#include "conv.h"
#include "registry.h"
#include "shape_check.h"

#include <array>
#include <functional>
#include <string>

namespace torchconv {

// The activation of this name; std::runtime_error if there is none. conv2d takes those with a derivative of their
// result alone.
Activation activation_named(const std::string& name, bool of_conv2d);

struct View {
  void* data;
  int64_t dim;
  const int64_t* size;
  const int64_t* stride;  // in elements
  Device device = Device::cpu;

  Sizes sizes() const { return Sizes(size, size_t(dim)); }
};

// One call of an operator, checked and planned.
struct Call {
  Conv conv;
  std::array<int64_t, 4> size, stride;  // of the result
  AnyPlan plan;
  const Implementation* implementation;

  // Chooses the implementation and plans the call; see choose() for `names`.
  Call(Op op, const Conv& conv, const std::array<int64_t, 4>& size, const std::array<int64_t, 4>& stride,
       const std::string& names)
      : conv(conv), size(size), stride(stride), implementation(&choose(conv, op, names, plan)) {}
};

// All operands are of `dtype` and on the device of the first. `implementation` may be empty; see choose(). Errors are
// std::runtime_error.
Call plan_conv2d(Dtype dtype, const View& x, const View& w, const Geometry& geometry,
                 const std::string& implementation);
Call plan_grad_input(Dtype dtype, const View& y, const View& w, Sizes input_size, const Geometry& geometry,
                     const std::string& implementation);
Call plan_grad_weight(Dtype dtype, const View& x, const View& y, Sizes kernel_size, const Geometry& geometry,
                      const std::string& implementation);

// Makes the result, of the operands' dtype and device, and returns where its data are.
using Allocate = std::function<void*(const std::array<int64_t, 4>& size, const std::array<int64_t, 4>& stride)>;

// The operators; `bias` may be null.
void conv2d(Dtype dtype, const View& x, const View& w, const View* bias, const Geometry& geometry,
            const std::string& activation, double slope, const std::string& implementation, const Allocate& allocate);

void conv2d_grad_input(Dtype dtype, const View& y, const View& w, Sizes input_size, const Geometry& geometry,
                       const std::string& implementation, const Allocate& allocate);

void conv2d_grad_weight(Dtype dtype, const View& x, const View& y, Sizes kernel_size, const Geometry& geometry,
                        const std::string& implementation, const Allocate& allocate);

}  // namespace torchconv
