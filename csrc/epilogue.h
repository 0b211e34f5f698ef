// The epilogue of conv2d: bias and activation, applied to each accumulator before the store.
#pragma once

#include "conv.h"

#include <cmath>

namespace torchconv {

// The activations that conv2d can fuse: y = activation(accumulator + bias[k]).
enum class Activation : uint8_t { none, relu, leaky_relu, relu6, sigmoid, tanh };

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
  }
  return v;
}

}  // namespace torchconv
