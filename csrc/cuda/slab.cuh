// Depthwise convolution and small groups, where a matrix product would have too few columns.
//
// A thread makes TP rows of one column of the result, for V channels: each row of a window's column is read once for
// all of them. Neighbouring threads take neighbouring channels where these lie together, with vectors of 16 bytes if
// they can be, and neighbouring columns else. What they share of the input comes from L1.
#pragma once

#include "../epilogue.h"
#include "math.cuh"
#include "problem.cuh"

namespace torchconv::cuda {

// Divides numbers below 2^31 by a multiplication (Granlund, Montgomery: Division by invariant integers, 1994).
struct Divisor {
  uint32_t divisor = 1, multiplier = 1, shift = 0;

  Divisor() = default;
  explicit Divisor(int64_t d) : divisor(d) {
    while ((int64_t(1) << shift) < d) ++shift;
    multiplier = ((int64_t(1) << 32) * ((int64_t(1) << shift) - d)) / d + 1;
  }
  // Takes the digit below `divisor` off a number.
  HOST_DEVICE int take(uint32_t& number) const {
    const uint32_t quotient = (uint32_t(uint64_t(number) * multiplier >> 32) + number) >> shift;
    const int digit = number - quotient * divisor;
    number = quotient;
    return digit;
  }
};

// How a thread reads and writes: G channels of a group one by one, or 16 bytes of channels.
template <class T, int G, bool vectors>
struct Channels {
  static constexpr int V = vectors && vector_size<T> > G ? vector_size<T> : G;
  using Sum = SumOf<T>;
  struct alignas(vectors ? 16 : sizeof(T)) Vector {
    T at[V];
  };
  struct alignas(V * sizeof(Sum) < 16 ? V * sizeof(Sum) : 16) Weights {
    Sum at[V];
  };

  static DEVICE Vector load(const T* from, int64_t step) {
    Vector vector;
    if constexpr (vectors)
      vector = *reinterpret_cast<const Vector*>(from);
    else
      UNROLL (int e = 0; e < V; ++e) vector.at[e] = from[e * step];
    return vector;
  }
  static DEVICE void store(T* to, const Vector& vector, int64_t step) {
    if constexpr (vectors)
      *reinterpret_cast<Vector*>(to) = vector;
    else
      UNROLL (int e = 0; e < V; ++e) to[e * step] = vector.at[e];
  }
};

// On a processor, of kernels whose sums leave room for two.
template <class T, int G>
constexpr int slab_blocks = sizeof(T) < 8 && G < 4 ? 2 : 1;

// A correlation whose groups have G channels on both sides.
struct Slab {
  Gather x;
  int P, K;  // K: channels of all groups
  Strides y, w;
  int64_t w_group;
  uint32_t count;                // of threads
  Divisor first, second, third;  // of a thread's number: channels, columns, rows; or columns, rows, channels
  bool by_channels;
  Epilogue epilogue;
};

// With R > 0 rows of taps, a stride of ST and no dilation among rows; with R = 0, any.
template <class T, int G, bool vectors, int R, int ST, int TP>
KERNEL(threads, (slab_blocks<T, G>))
slab_correlate(const Slab slab, const T* x, const SumOf<T>* w, T* y) {
  using Channels = cuda::Channels<T, G, vectors>;
  using Vector = typename Channels::Vector;
  using Weights = typename Channels::Weights;
  using Sum = SumOf<T>;
  constexpr int V = Channels::V;
  uint32_t number = blockIdx.x * uint32_t(threads) + threadIdx.x;
  if (number >= slab.count) return;
  const int first = slab.first.take(number), second = slab.second.take(number), third = slab.third.take(number);
  const int n = number, k = (slab.by_channels ? first : third) * V, q = slab.by_channels ? second : first,
            p = (slab.by_channels ? third : second) * TP;

  const Gather& from = slab.x;
  const T* image = x + n * from.x.n + k * from.x.c;
  Sum sums[TP][V] = {};
  const auto add = [&](Sum* sum, const Vector& values, const Weights* weights) {
    UNROLL (int j = 0; j < G; ++j)
      UNROLL (int e = 0; e < V; ++e) sum[e] += Sum(values.at[e / G * G + j]) * weights[j].at[e];
  };
  const auto weights_of = [&](int r, int s, int j) {
    return *reinterpret_cast<const Weights*>(w + ((int64_t(r) * from.S + s) * G + j) * slab.K + k);
  };
  for (int s = 0; s < from.S; ++s) {
    const int col = q * from.stride_w + s * from.dilation_w - from.pad_w;
    if (unsigned(col) >= unsigned(from.W)) continue;
    const T* column = image + col * from.x.w;
    const auto input = [&](int row) {
      return unsigned(row) < unsigned(from.H) ? Channels::load(column + row * from.x.h, from.x.c) : Vector{};
    };
    if constexpr (R > 0) {
      Weights weights[R][G];
      UNROLL (int r = 0; r < R; ++r)
        UNROLL (int j = 0; j < G; ++j) weights[r][j] = weights_of(r, s, j);
      UNROLL (int i = 0; i < (TP - 1) * ST + R; ++i) {
        const Vector values = input(p * ST - from.pad_h + i);
        UNROLL (int t = 0; t < TP; ++t)
          if (i - t * ST >= 0 && i - t * ST < R) add(sums[t], values, weights[i - t * ST]);
      }
    } else {
      for (int r = 0; r < from.R; ++r) {
        Weights weights[G];
        UNROLL (int j = 0; j < G; ++j) weights[j] = weights_of(r, s, j);
        UNROLL (int t = 0; t < TP; ++t)
          if (p + t < slab.P) add(sums[t], input((p + t) * from.stride_h + r * from.dilation_h - from.pad_h), weights);
      }
    }
  }

  const Epilogue& epilogue = slab.epilogue;
  const auto* bias = static_cast<const T*>(epilogue.bias);
  Sum b[V] = {};
  if (bias)
    UNROLL (int e = 0; e < V; ++e) b[e] = Sum(bias[(k + e) * epilogue.bias_stride]);
  T* to = y + n * slab.y.n + k * slab.y.c + q * slab.y.w + p * slab.y.h;
  UNROLL (int t = 0; t < TP; ++t) {
    if (p + t >= slab.P) break;
    Vector result;
    UNROLL (int e = 0; e < V; ++e)
      result.at[e] = T(activate(epilogue.activation, sums[t][e] + b[e], Sum(epilogue.slope)));
    Channels::store(to + t * slab.y.h, result, slab.y.c);
  }
}

// packed[tap][channel of the group][k]
template <class T>
KERNEL(threads, 1)
slab_pack(const Slab slab, const T* w, SumOf<T>* packed) {
  const int64_t row = int64_t(slab.x.C) * slab.K, count = int64_t(slab.x.R) * slab.x.S * row;
  for (int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x; i < count; i += int64_t(gridDim.x) * threads) {
    const int64_t k = i % slab.K, j = i % row / slab.K, tap = i / row;
    packed[i] = SumOf<T>(w[k / slab.x.C * slab.w_group + k % slab.x.C * slab.w.n + j * slab.w.c +
                           tap / slab.x.S * slab.w.h + tap % slab.x.S * slab.w.w]);
  }
}

}  // namespace torchconv::cuda
