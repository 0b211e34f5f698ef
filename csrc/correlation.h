// conv2d and conv2d_grad_input as correlations, so that one kernel computes both:
//
//   y[o] = sum over taps of x[o * stride + tap * dilation - pad] * w[tap]
//
// A negative pad cuts off the first elements of x.
//
// grad_input with stride 1 is the correlation of y with the flipped kernel. With stride s, the elements of x fall into
// s phases, and each phase meets other taps of the kernel: grad_input is s correlations of stride 1, one for each
// phase.
#pragma once

#include "conv.h"
#include "inline_vector.h"

#include <algorithm>
#include <cstdint>
#include <numeric>

namespace torchconv {

// A correlation reads x and w and computes y, whatever these are to the operator: grad_input reads the gradient of the
// output as x.
struct Correlation : Conv {
  int64_t w_group = 0;  // stride of w from one group to the next, in elements
  int64_t phases = 1;   // of the whole operator
};

inline Correlation forward_correlation(const Conv& conv) {
  Correlation problem;
  static_cast<Conv&>(problem) = conv;
  problem.w_group = conv.K_per_group() * conv.w.n;
  return problem;
}

// One phase of an axis: the elements offset, offset + stride, ... of x, and the taps last_tap, last_tap - step, ...
struct Phase {
  Axis axis;  // of the correlation
  int64_t offset, last_tap, step;
};

inline Phase phase(const Axis& axis, int64_t offset) {
  const int64_t common = std::gcd(axis.stride, axis.dilation), step = std::min(axis.stride / common, axis.kernel);
  Phase phase{};
  phase.offset = offset;
  phase.step = step;
  phase.axis = {axis.out, 0, (axis.in - offset - 1) / axis.stride + 1, 1, 1, 0};
  int64_t tap = 0;  // the first one that meets these elements
  while (tap < step && (offset + axis.pad - tap * axis.dilation) % axis.stride != 0) ++tap;
  if (tap == step) return phase;
  phase.axis.kernel = (axis.kernel - 1 - tap) / step + 1;
  // The dilation of a single tap is never used, and may be too large.
  if (phase.axis.kernel > 1) phase.axis.dilation = axis.dilation / common;
  phase.last_tap = tap + (phase.axis.kernel - 1) * step;
  // Element i of the phase reads y[i - pad] under the last tap, which comes first.
  phase.axis.pad = -((offset + axis.pad - phase.last_tap * axis.dilation) / axis.stride);
  return phase;
}

// A correlation that computes a part of a result: all of conv2d, or one phase of grad_input. Parts write disjoint
// elements.
struct Part {
  Correlation conv;
  int64_t w_offset, y_offset;  // of the first tap and of the first output, in elements
};

// A stride of 2 in both directions has four phases.
using Parts = InlineVector<Part, 4>;

inline Parts forward_parts(const Conv& conv) {
  Parts parts;
  parts.push_back({forward_correlation(conv), 0, 0});
  return parts;
}

// The stride, or the number of elements where there are fewer: each is then a phase.
inline int64_t phase_count(const Axis& axis) { return std::min(axis.stride, axis.in); }

inline double grad_input_phases(const Conv& conv) {
  return double(phase_count(conv.rows)) * double(phase_count(conv.cols));
}

// The phases of grad_input, in which y is read and x is computed. A phase without taps is zero.
inline Parts grad_input_parts(const Conv& conv) {
  Parts parts;
  const int64_t row_phases = phase_count(conv.rows), col_phases = phase_count(conv.cols);
  for (int64_t i = 0; i < row_phases; ++i)
    for (int64_t j = 0; j < col_phases; ++j) {
      const Phase rows = phase(conv.rows, i), cols = phase(conv.cols, j);
      Correlation problem;
      static_cast<Conv&>(problem) = {.dtype = conv.dtype,
                                     .N = conv.N,
                                     .C = conv.K,
                                     .K = conv.C,
                                     .groups = conv.groups,
                                     .rows = rows.axis,
                                     .cols = cols.axis,
                                     .x = conv.y,
                                     .w = {conv.w.c, conv.w.n, -conv.w.h * rows.step, -conv.w.w * cols.step},
                                     .y = {conv.x.n, conv.x.c, conv.x.h * row_phases, conv.x.w * col_phases},
                                     .device = conv.device,
                                     .tf32 = conv.tf32};
      problem.w_group = conv.K_per_group() * conv.w.n;
      problem.phases = row_phases * col_phases;
      parts.push_back({problem, rows.last_tap * conv.w.h + cols.last_tap * conv.w.w, i * conv.x.h + j * conv.x.w});
    }
  return parts;
}

}  // namespace torchconv
