// grad_weight for depthwise convolution and small groups.
//
// A thread accumulates one column of taps (or one tap) for V channels, over every pixel_lanes-th pixel of a chunk. A
// tree reduction adds the threads of a thread block that share taps, and a second kernel adds the chunks in order. Both
// orders are fixed, so that every run gives the same bits.
#pragma once

#include "grouped.cuh"

namespace torchconv::cuda {

// The problem, and how channels, taps and pixels are distributed over threads and thread blocks. A pixel is TP rows of
// one output column.
struct GroupedGradWeight {
  Gather x;
  int P, K;
  Strides y, w;
  PixelStepper pixels;  // (n, block of TP rows, column), advanced by pixel_lanes
  int64_t pixel_count, chunk_pixels, chunks;
  int channel_lanes, tap_lanes, pixel_lanes;  // threads per thread block; pixel_lanes is a power of two
  int channel_blocks, tap_blocks;

  HOST_DEVICE int64_t sums_per_chunk() const { return int64_t(x.R) * x.S * x.C * K; }
};

// Adds the accumulators of all pixel lanes by a tree reduction. Lane 0 returns the sum. Adjacent lanes are `step`
// threads apart; `shared` has an element for each thread.
template <class Acc>
DEVICE Acc reduce_pixel_lanes(Acc sum, Acc* shared, int pixel_lane, int pixel_lanes, int step) {
  for (int half = pixel_lanes / 2; half > 0; half /= 2) {
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (pixel_lane < half) sum += shared[threadIdx.x + half * step];
    __syncthreads();
  }
  return sum;
}

// Accumulates one chunk. Writes partials[chunk][tap][input channel of the group][k].
// R > 1: a thread has a column of R taps, with vertical stride ST and no vertical dilation.
// R = 1: a thread has one tap, for any geometry.
template <class T, int G, bool vectors, int R, int ST, int TP>
KERNEL(threads, (grouped_blocks<T, G>))
grouped_grad_weight(const GroupedGradWeight problem, const T* x, const T* y, AccOf<T>* partials) {
  using Channels = cuda::Channels<T, G, vectors>;
  using Vector = typename Channels::Vector;
  using Acc = AccOf<T>;
  constexpr int V = Channels::V;
  const Gather& from = problem.x;
  const int lane = threadIdx.x % problem.channel_lanes,
            tap_lane = threadIdx.x / problem.channel_lanes % problem.tap_lanes,
            pixel_lane = threadIdx.x / problem.channel_lanes / problem.tap_lanes;
  int64_t block = blockIdx.x;
  const int k = (int(block % problem.channel_blocks) * problem.channel_lanes + lane) * V;
  block /= problem.channel_blocks;
  const int tap = int(block % problem.tap_blocks) * problem.tap_lanes + tap_lane, s = tap % from.S, r0 = tap / from.S;
  const int64_t chunk = block / problem.tap_blocks, end = min((chunk + 1) * problem.chunk_pixels, problem.pixel_count);

  Acc sums[R][G][V] = {};
  int64_t pixel = chunk * problem.chunk_pixels + pixel_lane;
  if (k >= problem.K || tap >= from.S * (R > 1 ? 1 : from.R)) pixel = end;
  MixedRadix at = problem.pixels.digits(pixel);
  for (; pixel < end; pixel += problem.pixel_lanes, problem.pixels.advance(at)) {
    const int p = at.b * TP, q = at.c, col = q * from.stride_w + s * from.dilation_w - from.pad_w;
    if (unsigned(col) >= unsigned(from.W)) continue;
    const T* column = x + at.a * from.x.n + k * from.x.c + col * from.x.w;
    const T* gradient = y + at.a * problem.y.n + k * problem.y.c + q * problem.y.w + p * problem.y.h;
    const int step = R > 1 ? ST : from.stride_h, first = p * step + r0 * from.dilation_h - from.pad_h;
    const auto input = [&](int row) {
      return unsigned(row) < unsigned(from.H) ? Channels::load(column + row * from.x.h, from.x.c) : Vector{};
    };
    const auto add = [&](Acc(&sum)[G][V], const Vector& dy, const Vector& values) {
      UNROLL (int j = 0; j < G; ++j)
        UNROLL (int e = 0; e < V; ++e) sum[j][e] += Acc(dy.at[e]) * Acc(values.at[e / G * G + j]);
    };
    // Output rows from P on are skipped below, not multiplied as zeros: zero times infinity is NaN.
    Vector dy[TP];
    UNROLL (int t = 0; t < TP; ++t)
      dy[t] = p + t < problem.P ? Channels::load(gradient + t * problem.y.h, problem.y.c) : Vector{};
    if constexpr (R > 1) {
      UNROLL (int i = 0; i < (TP - 1) * ST + R; ++i) {
        const Vector values = input(first + i);
        UNROLL (int t = 0; t < TP; ++t)
          if (i - t * ST >= 0 && i - t * ST < R && p + t < problem.P) add(sums[i - t * ST], dy[t], values);
      }
    } else {
      UNROLL (int t = 0; t < TP; ++t)
        if (p + t < problem.P) add(sums[0], dy[t], input(first + t * step));
    }
  }

  SHARED Acc shared[threads];
  const bool is_valid = k < problem.K && tap < from.S * (R > 1 ? 1 : from.R);
  UNROLL (int r = 0; r < R; ++r)
    UNROLL (int j = 0; j < G; ++j)
      UNROLL (int e = 0; e < V; ++e) {
        const Acc sum = reduce_pixel_lanes(sums[r][j][e], shared, pixel_lane, problem.pixel_lanes,
                                           problem.channel_lanes * problem.tap_lanes);
        if (pixel_lane == 0 && is_valid)
          partials[chunk * problem.sums_per_chunk() + (int64_t(r * from.S + tap) * G + j) * problem.K + k + e] = sum;
      }
}

// Reduces the chunks in order, rounds to T and writes w.
template <class T>
KERNEL(threads, 1)
grouped_reduce_chunks(const GroupedGradWeight problem, const AccOf<T>* partials, T* w) {
  const int64_t count = problem.sums_per_chunk(), row = int64_t(problem.x.C) * problem.K;
  for (int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x; i < count; i += int64_t(gridDim.x) * threads) {
    AccOf<T> sum = 0;
    for (int64_t chunk = 0; chunk < problem.chunks; ++chunk) sum += partials[chunk * count + i];
    const int64_t k = i % problem.K, j = i % row / problem.K, tap = i / row;
    w[k * problem.w.n + j * problem.w.c + tap / problem.x.S * problem.w.h + tap % problem.x.S * problem.w.w] = T(sum);
  }
}

}  // namespace torchconv::cuda
