// The problem in the form that the kernels use: 32-bit sizes where they suffice, the im2col matrix as a Gather, and
// counters that step through pixels without divisions.
#pragma once

#include "../conv.h"
#include "../intmath.h"
#include "ptx.cuh"

#include <algorithm>

namespace torchconv::cuda {

// A three-digit mixed-radix index, such as (n, p, q) of a pixel. c is the fastest digit.
struct MixedRadix {
  int a, b, c;
};

// Converts linear indices to MixedRadix, and advances MixedRadix by a fixed step without divisions.
struct PixelStepper {
  int b_end, c_end;  // the radices of b and c
  MixedRadix step;   // added by advance()

  HOST_DEVICE MixedRadix digits(int64_t number) const {
    return {int(number / c_end / b_end), int(number / c_end % b_end), int(number % c_end)};
  }
  struct Carries {
    bool a, b;  // whether the addition carried into these digits
  };
  HOST_DEVICE Carries advance(MixedRadix& to) const {
    to.c += step.c;
    const bool to_b = to.c >= c_end;
    to.c -= to_b ? c_end : 0;
    to.b += step.b + to_b;
    const bool to_a = to.b >= b_end;
    to.b -= to_a ? b_end : 0;
    to.a += step.a + to_a;
    return {to_a, to_b};
  }
};

// A counter with radices b_end and c_end that advances by `step` linear indices.
inline PixelStepper counter(int64_t b_end, int64_t c_end, int64_t step) {
  PixelStepper counter{int(std::max<int64_t>(1, b_end)), int(std::max<int64_t>(1, c_end)), {}};
  counter.step = counter.digits(step);
  return counter;
}

// A position so far outside the tensor that it stays outside whatever tap offset is added, and a tap offset that moves
// every position outside.
constexpr int far_outside = -(1 << 30);

// The bound that fits() puts on the magnitude of sizes, positions and tap offsets.
constexpr int64_t size_limit = 1 << 30;
static_assert(far_outside + (size_limit - 1) < 0, "a position far outside must stay outside under every tap");
static_assert(int64_t(far_outside) + far_outside >= INT32_MIN, "a position plus a tap offset must fit in 32 bits");

// The displacement from the first element of a window to another of its elements: `offset` in elements of memory, `h`
// and `w` in positions.
struct alignas(16) Tap {
  int64_t offset;
  int h, w;
};
static_assert(sizeof(Tap) == 16, "Tap has no padding");

// The im2col matrix of a tensor [n, channel, h, w], which is never stored. A row is a pixel (n, p, q), that is, a
// window of the tensor; a column is an element (r, s, c) of the window. With one-tap windows it is the tensor itself.
struct Gather {
  int H, W;
  int stride_h, stride_w, dilation_h, dilation_w, pad_h, pad_w;
  int R, S, C;  // C: channels per group
  Strides x;    // in elements

  HOST_DEVICE int width() const { return R * S * C; }
  // (r, s, c) of a column.
  HOST_DEVICE MixedRadix window_coords(int64_t column) const {
    return {int(column / C / S), int(column / C % S), int(column % C)};
  }
  // The tap of a column. Columns beyond the matrix read as zeros.
  HOST_DEVICE Tap tap(int64_t column) const {
    if (column >= width()) return {0, far_outside, far_outside};
    const MixedRadix at = window_coords(column);
    const int h = at.a * dilation_h, w = at.b * dilation_w;
    return {h * x.h + w * x.w + at.c * x.c, h, w};
  }
  HOST_DEVICE bool contains(int h, int w) const { return unsigned(h) < unsigned(H) && unsigned(w) < unsigned(W); }
};

// The gather of the windows that an axis pair describes, with `channels` per group and the tensor's strides in
// elements.
inline Gather gather(const Axis& rows, const Axis& cols, int64_t channels, const Strides& strides) {
  return {
      .H = int(rows.in),
      .W = int(cols.in),
      .stride_h = int(rows.stride),
      .stride_w = int(cols.stride),
      .dilation_h = int(rows.dilation),
      .dilation_w = int(cols.dilation),
      .pad_h = int(rows.pad),
      .pad_w = int(cols.pad),
      .R = int(rows.kernel),
      .S = int(cols.kernel),
      .C = int(channels),
      .x = strides,
  };
}

// Whether positions, taps and channels are below 2^30, so that the sum of two of them fits in 32 bits.
inline bool fits(const Axis& axis) {
  return axis.in < size_limit && axis.kernel < size_limit && axis.out < size_limit && axis.stride < size_limit &&
         axis.dilation < size_limit && axis.pad < size_limit && axis.pad > -size_limit &&
         axis.dilation * (axis.kernel - 1) < size_limit && axis.position(axis.out - 1, axis.kernel - 1) < size_limit;
}

inline bool fits(const Conv& conv) {
  return fits(conv.rows) && fits(conv.cols) && conv.N < size_limit && conv.C < size_limit && conv.K < size_limit &&
         conv.rows.kernel * conv.cols.kernel < size_limit &&
         double(conv.rows.kernel) * conv.cols.kernel * std::max(conv.C, conv.K) < size_limit;
}

inline bool is_empty(const Conv& conv) {
  return conv.N == 0 || conv.C == 0 || conv.K == 0 || conv.rows.in == 0 || conv.cols.in == 0;
}

// Whether a tensor can be accessed in aligned 16-byte vectors of channels, with `channels` channels per group.
template <class T>
bool has_vectors(const void* data, const Strides& strides, int64_t channels) {
  constexpr int64_t V = 16 / sizeof(T);
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && strides.c == 1 && channels % V == 0 && strides.n % V == 0 &&
         strides.h % V == 0 && strides.w % V == 0;
}

}  // namespace torchconv::cuda
