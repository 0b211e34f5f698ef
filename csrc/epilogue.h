// The epilogue of conv2d: bias and activation, applied to each accumulator before the store.
#pragma once

#include "conv.h"

#include <cmath>

namespace torchconv {

// y = activation(v). The derivative of those up to tanh is a function of y: conv2d can fuse them, as it keeps y alone
// for backward. The others need v.
enum class Activation : uint8_t { none, relu, leaky_relu, relu6, sigmoid, tanh, silu, hardswish, hardsigmoid, gelu };

HOST_DEVICE constexpr bool has_derivative_of_result(Activation activation) { return activation <= Activation::tanh; }

// What conv2d applies to each accumulator before the store. Every part is optional.
struct Epilogue {
  const void* bias = nullptr;  // [K] of the problem's dtype, or null
  int64_t bias_stride = 0;     // in elements
  Activation activation = Activation::none;
  double slope = 0;  // of leaky_relu, for negative inputs
};

// Applies `activation` to v; only leaky_relu uses `slope`. Every activation propagates NaN, as torch does.
template <class Value>
HOST_DEVICE Value activate(Activation activation, Value v, Value slope) {
  switch (activation) {
    case Activation::none: return v;
    case Activation::relu: return v < 0 ? Value(0) : v;
    case Activation::leaky_relu: return v < 0 ? v * slope : v;
    case Activation::relu6: return v < 0 ? Value(0) : v > 6 ? Value(6) : v;
    case Activation::sigmoid: return 1 / (1 + std::exp(-v));
    case Activation::tanh: return std::tanh(v);
    case Activation::silu: return v / (1 + std::exp(-v));
    case Activation::hardswish: return v < -3 ? Value(0) : v > 3 ? v : v * (v + 3) / 6;
    case Activation::hardsigmoid: return v < -3 ? Value(0) : v > 3 ? Value(1) : (v + 3) / 6;
    case Activation::gelu: return v * std::erfc(v * Value(-0.70710678118654752)) / 2;
  }
  return v;
}

}  // namespace torchconv
