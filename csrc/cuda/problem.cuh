// A problem as the kernels see it, in 32 bits where 32 bits will do, and how to walk through it without divisions.
#pragma once

#include "../conv.h"
#include "ptx.cuh"

#include <algorithm>

namespace torchconv::cuda {

// A number of three digits, the last of which moves fastest: (n, p, q) of a pixel.
struct Digits {
  int a, b, c;
};

struct Counter {
  int b_end, c_end;
  Digits step;

  HOST_DEVICE Digits digits(int64_t number) const {
    return {int(number / c_end / b_end), int(number / c_end % b_end), int(number % c_end)};
  }
  struct Carries {
    bool a, b;  // into these digits
  };
  HOST_DEVICE Carries advance(Digits& to) const {
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

inline Counter counter(int64_t b_end, int64_t c_end, int64_t step) {
  Counter counter{int(std::max<int64_t>(1, b_end)), int(std::max<int64_t>(1, c_end)), {}};
  counter.step = counter.digits(step);
  return counter;
}

// What a position becomes that is outside whatever tap is added to it, and a tap that no position is inside under.
constexpr int far_outside = -(1 << 30);

// From the first element of a window to another one of it.
struct alignas(16) Tap {
  int64_t offset;
  int h, w;
};

// A matrix that is gathered from a tensor [n, channel, h, w]: its rows are pixels (n, p, q) of a window's positions,
// its columns are products (r, s, c) of a window. A tensor itself is one, too, whose windows are of one tap.
struct Gather {
  int H, W;
  int stride_h, stride_w, dilation_h, dilation_w, pad_h, pad_w;
  int R, S, C;  // C: channels of a group
  Strides x;    // in elements

  HOST_DEVICE int width() const { return R * S * C; }
  HOST_DEVICE Digits product(int64_t column) const {
    return {int(column / C / S), int(column / C % S), int(column % C)};
  }
  HOST_DEVICE Tap tap(int64_t column) const {
    if (column >= width()) return {0, far_outside, far_outside};
    const Digits at = product(column);
    const int h = at.a * dilation_h, w = at.b * dilation_w;
    return {h * x.h + w * x.w + at.c * x.c, h, w};
  }
  HOST_DEVICE bool contains(int h, int w) const { return unsigned(h) < unsigned(H) && unsigned(w) < unsigned(W); }
};

inline Gather gather(const Axis& rows, const Axis& cols, int64_t channels, const Strides& strides) {
  Gather all{};
  all.H = rows.in, all.W = cols.in;
  all.stride_h = rows.stride, all.stride_w = cols.stride;
  all.dilation_h = rows.dilation, all.dilation_w = cols.dilation;
  all.pad_h = rows.pad, all.pad_w = cols.pad;
  all.R = rows.kernel, all.S = cols.kernel, all.C = channels;
  all.x = strides;
  return all;
}

// Whether positions, taps and channels fit into 32 bits, with room to add two of them.
inline bool fits(const Axis& axis) {
  constexpr int64_t most = 1 << 30;
  return axis.in < most && axis.kernel < most && axis.out < most && axis.stride < most && axis.dilation < most &&
         axis.pad < most && axis.pad > -most && axis.dilation * (axis.kernel - 1) < most &&
         axis.position(axis.out - 1, axis.kernel - 1) < most;
}

inline bool fits(const Conv& conv) {
  constexpr int64_t most = 1 << 30;
  return fits(conv.rows) && fits(conv.cols) && conv.N < most && conv.C < most && conv.K < most &&
         conv.rows.kernel * conv.cols.kernel < most &&
         double(conv.rows.kernel) * conv.cols.kernel * std::max(conv.C, conv.K) < most;
}

inline bool is_empty(const Conv& conv) {
  return conv.N == 0 || conv.C == 0 || conv.K == 0 || conv.rows.in == 0 || conv.cols.in == 0;
}

// Whether all vectors of 16 bytes along the channels of one group after the other are aligned.
template <class T>
bool has_vectors(const void* data, const Strides& strides, int64_t channels) {
  constexpr int64_t V = 16 / sizeof(T);
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && strides.c == 1 && channels % V == 0 && strides.n % V == 0 &&
         strides.h % V == 0 && strides.w % V == 0;
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace torchconv::cuda
