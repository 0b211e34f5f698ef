// Rewrites a convolution as an equivalent one on the same memory with fewer taps and more channels, which kernels
// compute faster. Each result is the same sum of products.
#pragma once

#include "conv.h"
#include "registry.h"

#include <numeric>

namespace torchconv {

// Merges the whole window into the channels: a convolution with a single output pixel, whose window is the input, is a
// linear layer of C R S channels. In memory these must be one vector in both x and w, in the same order.
inline void merge_window(Conv& conv, Op op) {
  constexpr double max_outputs = 1 << 19;  // gemm packs as many biases
  const Axis &rows = conv.rows, &cols = conv.cols;
  if (op == Op::grad_input && double(conv.C) * rows.in * cols.in > max_outputs) return;
  const auto is_whole = [](const Axis& axis) {
    return axis.out == 1 && axis.kernel == axis.in && axis.pad == 0 && (axis.dilation == 1 || axis.kernel == 1);
  };
  if (conv.groups != 1 || !is_whole(rows) || !is_whole(cols)) return;
  // The distance of neighbouring elements if the dimensions, slowest first, are one vector; otherwise 0. The strides of
  // dimensions of size 1 are ignored.
  struct Dim {
    int64_t size, stride;
  };
  const auto step = [](Dim slow, Dim middle, Dim fast) {
    int64_t step = 0, size = 1;
    for (const Dim& dim : {fast, middle, slow}) {
      if (dim.size == 1) continue;
      if (size == 1) step = dim.stride;
      if (dim.stride != step * size) return int64_t(0);
      size *= dim.size;
    }
    return size == 1 ? int64_t(1) : step;
  };
  const auto step_of = [&](const Strides& s, bool channels_last) {
    const Dim c{conv.C, s.c}, h{rows.in, s.h}, w{cols.in, s.w};
    return channels_last ? step(h, w, c) : step(c, h, w);
  };
  for (bool channels_last : {true, false}) {
    const int64_t x = step_of(conv.x, channels_last), w = step_of(conv.w, channels_last);
    if (x == 0 || w == 0) continue;
    conv.C *= rows.in * cols.in;
    conv.x.c = x;
    conv.w.c = w;
    conv.rows = conv.cols = {.in = 1, .kernel = 1, .out = 1, .stride = 1, .dilation = 1, .pad = 0};
    return;
  }
}

// Merges groups of pixels of an axis into the channels, so that kernel and stride have no common divisor. A kernel of
// 16 x 16 with stride 16, for example, has 16 x 1 taps then, and 16 times as many channels. The channels of
// neighbouring pixels must be one vector in both x and w. `along` is the stride of the axis.
inline void merge_pixels(Conv& conv, Op op, Axis& axis, int64_t Strides::* along) {
  const int64_t stride = axis.out == 1 ? axis.kernel : axis.stride, size = std::gcd(axis.kernel, stride);
  if (conv.groups != 1 || axis.kernel < 1 || axis.out < 1 || size == 1 || axis.dilation != 1 || axis.pad % size != 0)
    return;
  const int64_t in = axis.in / size * size;  // the windows must read no other pixels; grad_input computes all
  if (in == 0) return;
  if (in != axis.in && (op == Op::grad_input || axis.position(axis.out - 1, axis.kernel - 1) >= in)) return;
  for (const Strides& s : {conv.x, conv.w})
    if (conv.C > 1 && s.*along != conv.C * s.c) return;
  for (Strides* s : {&conv.x, &conv.w}) {
    if (conv.C == 1) s->c = s->*along;
    s->*along *= size;
  }
  conv.C *= size;
  axis = {.in = in / size,
          .kernel = axis.kernel / size,
          .out = axis.out,
          .stride = stride / size,
          .dilation = 1,
          .pad = axis.pad / size};
}

inline Conv simplified(Conv conv, Op op) {
  merge_window(conv, op);
  merge_pixels(conv, op, conv.cols, &Strides::w);
  merge_pixels(conv, op, conv.rows, &Strides::h);
  return conv;
}

}  // namespace torchconv
