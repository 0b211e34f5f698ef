// Correlation (forward and grad_input) for depthwise convolution and small groups, where a matrix product would have
// too few columns.
//
// A thread computes TP rows of one output column for V channels. It loads each input row under a column of taps once
// for all TP rows. Adjacent threads take adjacent channels where these are contiguous in memory, in 16-byte vectors if
// aligned, and adjacent output columns otherwise. Input that threads share comes from L1.
#pragma once

#include "../epilogue.h"
#include "tile_math.cuh"
#include "geometry.cuh"

namespace torchconv::cuda {

// Division of integers below 2^31 by an invariant divisor, with one multiplication (Granlund and Montgomery, Division
// by Invariant Integers using Multiplication, 1994).
struct Divisor {
  uint32_t divisor = 1, multiplier = 1, shift = 0;

  Divisor() = default;
  explicit Divisor(int64_t d) : divisor(d) {
    while ((int64_t(1) << shift) < d) ++shift;
    multiplier = ((int64_t(1) << 32) * ((int64_t(1) << shift) - d)) / d + 1;
  }
  // Replaces `number` by its quotient and returns the remainder, the lowest digit in radix `divisor`.
  HOST_DEVICE int take(uint32_t& number) const {
    const uint32_t quotient = (uint32_t(uint64_t(number) * multiplier >> 32) + number) >> shift;
    const int digit = number - quotient * divisor;
    number = quotient;
    return digit;
  }
};

// The V channels of a thread and their loads and stores: one group of G channels with scalar accesses, or whole groups
// of at least 16 bytes with 16-byte vectors.
template <class T, int G, bool vectors>
struct Channels {
  static constexpr int V = vectors && vector_size<T> > G ? vector_size<T> : G;
  using Acc = AccOf<T>;
  struct alignas(vectors ? 16 : sizeof(T)) Vector {
    T at[V];
  };
  // One weight per output channel, in the type of the accumulators.
  struct alignas(V * sizeof(Acc) < 16 ? V * sizeof(Acc) : 16) Weights {
    Acc at[V];
  };

  // `step` is the stride of the channels in elements; vector accesses ignore it.
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

// Minimum thread blocks per SM, for __launch_bounds__: two where the accumulators leave enough registers.
template <class T, int G>
constexpr int grouped_blocks = sizeof(T) < 8 && G < 4 ? 2 : 1;

// A correlation whose groups have G channels on both sides.
struct GroupedProblem {
  Gather x;
  int P, K;  // K: output channels of all groups
  Strides y, w;
  int64_t w_group;
  uint32_t count;                // threads
  Divisor first, second, third;  // digits of the thread index, see by_channels
  bool by_channels;              // channels, columns, rows; otherwise columns, rows, channels
  Epilogue epilogue;
};

// Applies the epilogue and stores rows p, p + 1, ... of output column q.
template <class T, int G, bool vectors, int TP>
DEVICE void store_rows(const GroupedProblem& problem, AccOf<T> (&sums)[TP][Channels<T, G, vectors>::V], int n, int k,
                       int p, int q, T* y) {
  using Channels = cuda::Channels<T, G, vectors>;
  using Acc = AccOf<T>;
  constexpr int V = Channels::V;
  const Epilogue& epilogue = problem.epilogue;
  const auto* bias = static_cast<const T*>(epilogue.bias);
  Acc b[V] = {};
  if (bias)
    UNROLL (int e = 0; e < V; ++e) b[e] = Acc(bias[(k + e) * epilogue.bias_stride]);
  T* to = y + n * problem.y.n + k * problem.y.c + q * problem.y.w + p * problem.y.h;
  UNROLL (int t = 0; t < TP; ++t) {
    if (p + t >= problem.P) break;
    typename Channels::Vector result;
    UNROLL (int e = 0; e < V; ++e)
      result.at[e] = T(activate(epilogue.activation, sums[t][e] + b[e], Acc(epilogue.slope)));
    Channels::store(to + t * problem.y.h, result, problem.y.c);
  }
}

// Computes TP rows of one output column for V channels. R > 0: kernels of R rows with vertical stride ST and no
// vertical dilation. R = 0: any geometry. The weights come packed, see grouped_pack.
template <class T, int G, bool vectors, int R, int ST, int TP>
KERNEL(threads, (grouped_blocks<T, G>))
grouped_correlate(const GroupedProblem problem, const T* x, const AccOf<T>* w, T* y) {
  using Channels = cuda::Channels<T, G, vectors>;
  using Vector = typename Channels::Vector;
  using Weights = typename Channels::Weights;
  using Acc = AccOf<T>;
  constexpr int V = Channels::V;
  uint32_t number = blockIdx.x * uint32_t(threads) + threadIdx.x;
  if (number >= problem.count) return;
  const int first = problem.first.take(number), second = problem.second.take(number),
            third = problem.third.take(number);
  const int n = number, k = (problem.by_channels ? first : third) * V, q = problem.by_channels ? second : first,
            p = (problem.by_channels ? third : second) * TP;

  const Gather& from = problem.x;
  const T* image = x + n * from.x.n + k * from.x.c;
  Acc sums[TP][V] = {};
  const auto add = [&](Acc* sum, const Vector& values, const Weights* weights) {
    UNROLL (int j = 0; j < G; ++j)
      UNROLL (int e = 0; e < V; ++e) sum[e] += Acc(values.at[e / G * G + j]) * weights[j].at[e];
  };
  const auto weights_of = [&](int r, int s, int j) {
    return *reinterpret_cast<const Weights*>(w + ((int64_t(r) * from.S + s) * G + j) * problem.K + k);
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
          if (p + t < problem.P)
            add(sums[t], input((p + t) * from.stride_h + r * from.dilation_h - from.pad_h), weights);
      }
    }
  }

  store_rows<T, G, vectors, TP>(problem, sums, n, k, p, q, y);
}

// Writes packed[tap][input channel of the group][k] in the type of the accumulators.
template <class T>
KERNEL(threads, 1)
grouped_pack(const GroupedProblem problem, const T* w, AccOf<T>* packed) {
  const int64_t row = int64_t(problem.x.C) * problem.K, count = int64_t(problem.x.R) * problem.x.S * row;
  for (int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x; i < count; i += int64_t(gridDim.x) * threads) {
    const int64_t k = i % problem.K, j = i % row / problem.K, tap = i / row;
    packed[i] = AccOf<T>(w[k / problem.x.C * problem.w_group + k % problem.x.C * problem.w.n + j * problem.w.c +
                           tap / problem.x.S * problem.w.h + tap % problem.x.S * problem.w.w]);
  }
}

}  // namespace torchconv::cuda
