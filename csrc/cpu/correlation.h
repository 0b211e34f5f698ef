// Forward and grad_input are one thing to the kernels: correlations, y[o] = sum over taps of x[o * stride + tap *
// dilation - pad] * w[tap], over a region that may have zeros around it or parts cut off (a negative pad).
//
// grad_input with stride 1 is the correlation of y with the turned kernel. With stride s, the elements of x fall into
// s phases that meet different taps of the kernel: each phase is a correlation of stride 1 of its own.
#pragma once

#include "../conv.h"

#include <algorithm>
#include <cstdint>
#include <numeric>

namespace torchconv::cpu {

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
  const int64_t common = std::gcd(axis.stride, axis.dilation), step = axis.stride / common;
  Phase phase{};
  phase.offset = offset, phase.step = step;
  phase.axis = {axis.out, 0, (axis.in - offset - 1) / axis.stride + 1, 1, axis.dilation / common, 0};
  int64_t tap = 0;  // the first that meets these elements
  while (tap < std::min(step, axis.kernel) && (offset + axis.pad - tap * axis.dilation) % axis.stride != 0) ++tap;
  if (tap == step || tap >= axis.kernel) return phase;
  phase.axis.kernel = (axis.kernel - 1 - tap) / step + 1;
  phase.last_tap = tap + (phase.axis.kernel - 1) * step;
  // Element i of the phase reads y[i - pad] under the last tap, which comes first.
  phase.axis.pad = -((offset + axis.pad - phase.last_tap * axis.dilation) / axis.stride);
  return phase;
}

// Calls body(correlation, offset in w, offset in x) for the phases of grad_input, in which y is read and x is made.
// A correlation without taps, or of an empty region, stands for zeros.
template <class Body>
void for_each_phase(const Conv& conv, const Body& body) {
  for (int64_t h = 0; h < std::min(conv.rows.stride, conv.rows.in); ++h)
    for (int64_t w = 0; w < std::min(conv.cols.stride, conv.cols.in); ++w) {
      const Phase rows = phase(conv.rows, h), cols = phase(conv.cols, w);
      Correlation problem;
      problem.dtype = conv.dtype;
      problem.N = conv.N, problem.C = conv.K, problem.K = conv.C, problem.groups = conv.groups;
      problem.rows = rows.axis, problem.cols = cols.axis;
      problem.x = conv.y;
      problem.y = {conv.x.n, conv.x.c, conv.x.h * conv.rows.stride, conv.x.w * conv.cols.stride};
      problem.w = {conv.w.c, conv.w.n, -conv.w.h * rows.step, -conv.w.w * cols.step};
      problem.w_group = conv.K_per_group() * conv.w.n;
      problem.phases = conv.rows.stride * conv.cols.stride;
      body(problem, rows.last_tap * conv.w.h + cols.last_tap * conv.w.w, h * conv.x.h + w * conv.x.w);
    }
}

}  // namespace torchconv::cpu
