// grad_weight of depthwise convolution and small groups.
//
// A thread has one column of taps (or one tap) of V channels, and adds up the products of every so many pixels. Threads
// of a block that have the same taps are added in a tree, blocks in order: both fixed, so that every run has the same
// bits.
#pragma once

#include "slab.cuh"

namespace torchconv::cuda {

struct SlabWeight {
  Gather x;
  int P, K;
  Strides y, w;
  Counter pixels;  // (n, TP rows, column), so many as threads of a block have the same taps
  int64_t pixel_count, chunk_pixels, chunks;
  int channel_lanes, tap_lanes, pixel_lanes;  // threads of a block; the last a power of two
  int channel_blocks, tap_blocks;

  HOST_DEVICE int64_t sums_per_chunk() const { return int64_t(x.R) * x.S * x.C * K; }
};

// With R > 1 rows of taps, a stride of ST and no dilation among rows; with R = 1, each tap by itself, and any.
template <class T, int G, bool vectors, int R, int ST, int TP>
KERNEL(threads, (slab_blocks<T, G>))
slab_weight(const SlabWeight slab, const T* x, const T* y, SumOf<T>* sums_of_chunks) {
  using Channels = cuda::Channels<T, G, vectors>;
  using Vector = typename Channels::Vector;
  using Sum = SumOf<T>;
  constexpr int V = Channels::V;
  const Gather& from = slab.x;
  const int lane = threadIdx.x % slab.channel_lanes, tap_lane = threadIdx.x / slab.channel_lanes % slab.tap_lanes,
            pixel_lane = threadIdx.x / slab.channel_lanes / slab.tap_lanes;
  int64_t block = blockIdx.x;
  const int k = (int(block % slab.channel_blocks) * slab.channel_lanes + lane) * V;
  block /= slab.channel_blocks;
  const int tap = int(block % slab.tap_blocks) * slab.tap_lanes + tap_lane, s = tap % from.S, r0 = tap / from.S;
  const int64_t chunk = block / slab.tap_blocks, end = min((chunk + 1) * slab.chunk_pixels, slab.pixel_count);

  Sum sums[R][G][V] = {};
  int64_t pixel = chunk * slab.chunk_pixels + pixel_lane;
  if (k >= slab.K || tap >= from.S * (R > 1 ? 1 : from.R)) pixel = end;
  Digits at = slab.pixels.digits(pixel);
  for (; pixel < end; pixel += slab.pixel_lanes, slab.pixels.advance(at)) {
    const int p = at.b * TP, q = at.c, col = q * from.stride_w + s * from.dilation_w - from.pad_w;
    if (unsigned(col) >= unsigned(from.W)) continue;
    const T* column = x + at.a * from.x.n + k * from.x.c + col * from.x.w;
    const T* gradient = y + at.a * slab.y.n + k * slab.y.c + q * slab.y.w + p * slab.y.h;
    const int step = R > 1 ? ST : from.stride_h, first = p * step + r0 * from.dilation_h - from.pad_h;
    const auto input = [&](int row) {
      return unsigned(row) < unsigned(from.H) ? Channels::load(column + row * from.x.h, from.x.c) : Vector{};
    };
    // Rows beyond the last one are left out, not taken as zeros: zero times infinity is no zero.
    const auto add = [&](Sum(&sum)[G][V], const Vector& dy, const Vector& values) {
      UNROLL (int j = 0; j < G; ++j)
        UNROLL (int e = 0; e < V; ++e) sum[j][e] += Sum(dy.at[e]) * Sum(values.at[e / G * G + j]);
    };
    Vector dy[TP];
    UNROLL (int t = 0; t < TP; ++t)
      dy[t] = p + t < slab.P ? Channels::load(gradient + t * slab.y.h, slab.y.c) : Vector{};
    if constexpr (R > 1) {
      UNROLL (int i = 0; i < (TP - 1) * ST + R; ++i) {
        const Vector values = input(first + i);
        UNROLL (int t = 0; t < TP; ++t)
          if (i - t * ST >= 0 && i - t * ST < R && p + t < slab.P) add(sums[i - t * ST], dy[t], values);
      }
    } else {
      UNROLL (int t = 0; t < TP; ++t)
        if (p + t < slab.P) add(sums[0], dy[t], input(first + t * step));
    }
  }

  SHARED Sum shared[threads];
  UNROLL (int r = 0; r < R; ++r)
    UNROLL (int j = 0; j < G; ++j)
      UNROLL (int e = 0; e < V; ++e) {
        Sum sum = sums[r][j][e];
        for (int half = slab.pixel_lanes / 2, step = slab.channel_lanes * slab.tap_lanes; half > 0; half /= 2) {
          shared[threadIdx.x] = sum;
          __syncthreads();
          if (pixel_lane < half) sum += shared[threadIdx.x + half * step];
          __syncthreads();
        }
        if (pixel_lane == 0 && k < slab.K && tap < from.S * (R > 1 ? 1 : from.R))
          sums_of_chunks[chunk * slab.sums_per_chunk() + (int64_t(r * from.S + tap) * G + j) * slab.K + k + e] = sum;
      }
}

template <class T>
KERNEL(threads, 1)
slab_add_chunks(const SlabWeight slab, const SumOf<T>* sums_of_chunks, T* w) {
  const int64_t count = slab.sums_per_chunk(), row = int64_t(slab.x.C) * slab.K;
  for (int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x; i < count; i += int64_t(gridDim.x) * threads) {
    SumOf<T> sum = 0;
    for (int64_t chunk = 0; chunk < slab.chunks; ++chunk) sum += sums_of_chunks[chunk * count + i];
    const int64_t k = i % slab.K, j = i % row / slab.K, tap = i / row;
    w[k * slab.w.n + j * slab.w.c + tap / slab.x.S * slab.w.h + tap % slab.x.S * slab.w.w] = T(sum);
  }
}

}  // namespace torchconv::cuda
