// Forward and grad_input are one thing to the kernels: correlations, y[o] = sum over taps of x[o * stride + tap *
// dilation - pad] * w[tap], over a region that may have zeros around it or parts cut off (a negative pad).
//
// grad_input with stride 1 is the correlation of y with the turned kernel. With stride s, the elements of x fall into
// s phases that meet different taps of the kernel: each phase is a correlation of stride 1 of its own.
#pragma once

#include "conv.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace torchconv {

// As in Conv, x is what is read and y what is made. The taps of group g start w_group * g elements into w.
struct Correlation : Conv {
  int64_t w_group = 0;
  int64_t phases = 1;  // that make up the whole result
};

inline Correlation forward_correlation(const Conv& conv) {
  Correlation problem;
  static_cast<Conv&>(problem) = conv;
  problem.w_group = conv.K_per_group() * conv.w.n;
  return problem;
}

// One phase of an axis: the elements offset, offset + stride, ... of x, and the taps last_tap, last_tap - step, ...
struct Phase {
  Axis axis;  // the correlation's
  int64_t offset, last_tap, step;
};

inline Phase phase(const Axis& axis, int64_t offset) {
  const int64_t common = std::gcd(axis.stride, axis.dilation), step = std::min(axis.stride / common, axis.kernel);
  Phase phase{};
  phase.offset = offset, phase.step = step;
  phase.axis = {axis.out, 0, (axis.in - offset - 1) / axis.stride + 1, 1, 1, 0};
  int64_t tap = 0;  // the first that meets these elements
  while (tap < step && (offset + axis.pad - tap * axis.dilation) % axis.stride != 0) ++tap;
  if (tap == step) return phase;
  phase.axis.kernel = (axis.kernel - 1 - tap) / step + 1;
  if (phase.axis.kernel > 1) phase.axis.dilation = axis.dilation / common;
  phase.last_tap = tap + (phase.axis.kernel - 1) * step;
  // Element i of the phase reads y[i - pad] under the last tap, which comes first.
  phase.axis.pad = -((offset + axis.pad - phase.last_tap * axis.dilation) / axis.stride);
  return phase;
}

// One of the correlations that make up a result: the only one of the forward operator, or a phase of grad_input. It
// writes elements of the result that no other one does.
struct Part {
  Correlation conv;
  int64_t w_offset, y_offset;  // of its first tap and of its first output, in elements
};

using Parts = std::vector<Part>;

inline Parts forward_parts(const Conv& conv) { return {{forward_correlation(conv), 0, 0}}; }

// As many as the stride, or as the elements, of which each is a phase of its own then.
inline int64_t phase_count(const Axis& axis) { return std::min(axis.stride, axis.in); }

inline double grad_input_phases(const Conv& conv) {
  return double(phase_count(conv.rows)) * double(phase_count(conv.cols));
}

// The phases of grad_input, in which y is read and x is made. A correlation without taps stands for zeros.
inline Parts grad_input_parts(const Conv& conv) {
  Parts parts;
  const int64_t row_phases = phase_count(conv.rows), col_phases = phase_count(conv.cols);
  for (int64_t i = 0; i < row_phases; ++i)
    for (int64_t j = 0; j < col_phases; ++j) {
      const Phase rows = phase(conv.rows, i), cols = phase(conv.cols, j);
      Correlation problem;
      problem.dtype = conv.dtype, problem.device = conv.device, problem.tf32 = conv.tf32;
      problem.N = conv.N, problem.C = conv.K, problem.K = conv.C, problem.groups = conv.groups;
      problem.rows = rows.axis, problem.cols = cols.axis;
      problem.x = conv.y;
      problem.y = {conv.x.n, conv.x.c, conv.x.h * row_phases, conv.x.w * col_phases};
      problem.w = {conv.w.c, conv.w.n, -conv.w.h * rows.step, -conv.w.w * cols.step};
      problem.w_group = conv.K_per_group() * conv.w.n;
      problem.phases = row_phases * col_phases;
      parts.push_back({problem, rows.last_tap * conv.w.h + cols.last_tap * conv.w.w, i * conv.x.h + j * conv.x.w});
    }
  return parts;
}

}  // namespace torchconv
