// grad_weight as an implicit matrix product: w [K, R S C] = transpose of y [pixels, K] times im2col(x) [pixels, R S C],
// one product per group.
//
// The reduction over pixels is split into chunks (split-K). Each chunk is accumulated by separate thread blocks into
// scratch memory, and a second kernel adds the chunks in a fixed order, so that every run gives the same bits. Both
// operand tiles are [pixel][channel], with 64 bytes of the reduction.
#pragma once

#include "gemm.cuh"

namespace torchconv::cuda {

// How far a pixel's window moves in memory when the pixel advances by one tile, in elements.
struct WindowStep {
  int64_t step, row, image;  // `row` and `image` are added if the advance carries into the next row or image

  HOST_DEVICE int64_t of(const PixelStepper::Carries& carries) const {
    return step + (carries.b ? row : 0) + (carries.a ? image : 0);
  }
};

// The walk of `from` for the counter's step.
inline WindowStep walk(const Gather& from, const PixelStepper& pixels) {
  const uint64_t n = from.x.n, h = from.stride_h * from.x.h, w = from.stride_w * from.x.w;  // unsigned: may wrap
  return {int64_t(pixels.step.a * n + pixels.step.b * h + pixels.step.c * w), int64_t(h - pixels.c_end * w),
          int64_t(n - pixels.b_end * h)};
}

// The grad_weight problem, and how its tiles and chunks are laid out.
struct GradWeightParams {
  Gather y, x;  // y has one-tap windows and K channels per group
  WindowStep y_walk, x_walk;
  int groups;
  PixelStepper pixels;  // (n, p, q), advanced by one tile
  int pixel_count;      // N P Q
  int chunk_pixels, chunks;
  int rows, columns;  // number of tiles in K and in R S C
  Strides w;

  HOST_DEVICE int64_t sums_per_chunk() const { return int64_t(groups) * y.C * x.width(); }
};

// Fills [pixel][channel] tiles of `width` columns of a gathered matrix: by cp.async of 16-byte vectors of channels,
// where adjacent threads copy the vectors of one pixel, or by scalar loads, where adjacent threads load adjacent
// pixels. begin() and end() as in gemm.cuh.
template <class T, int width, bool vectors>
class GatherReader {
  static constexpr int V = vector_size<T>, per_pixel = width / V, count = depth<T> * per_pixel / threads;
  static constexpr int pixels = vectors ? count : 1;

 public:
  using Tile = LineMajorTile<T, width>;

  // Reads columns `column` to `column` + width - 1 of the pixels in [pixel, end). Writes the taps of the columns to
  // `taps` in shared memory; the caller synchronizes before begin().
  DEVICE GatherReader(const Gather& from, const WindowStep& walk, const PixelStepper& counter, const T* data, Tap* taps,
                      int group, int column, int pixel, int end)
      : from_(from), walk_(walk), counter_(counter), taps_(taps) {
    for (int i = threadIdx.x; i < width; i += threads) taps[i] = from.tap(column + i);
    UNROLL (int i = 0; i < pixels; ++i) {
      Pixel& at = pixels_[i];
      at.digits = counter.digits(pixel + row(i));
      at.left = end - pixel - row(i);
      at.first =
          data + int64_t(group) * from.C * from.x.c + at.digits.a * from.x.n + h(at) * from.x.h + w(at) * from.x.w;
    }
  }

  DEVICE void begin(const Tile& tile) {
    UNROLL (int i = 0; i < count; ++i) {
      const Pixel& at = pixels_[vectors ? i : 0];
      const auto valid = [&](const Tap& tap) { return at.left > 0 && from_.contains(h(at) + tap.h, w(at) + tap.w); };
      if constexpr (vectors) {
        const Tap& tap = taps_[vector(i) * V];
        ptx::copy_async(tile.vector(row(i), vector(i)), at.first + tap.offset, valid(tap));
      } else {
        UNROLL (int e = 0; e < V; ++e) {
          const Tap& tap = taps_[vector(i) * V + e];
          held_[i].at[e] = valid(tap) ? at.first[tap.offset] : T(0);
        }
      }
    }
    UNROLL (int i = 0; i < pixels; ++i) {
      pixels_[i].first += walk_.of(counter_.advance(pixels_[i].digits));
      pixels_[i].left -= depth<T>;
    }
  }
  DEVICE void end(const Tile& tile) {
    if constexpr (!vectors)
      UNROLL (int i = 0; i < count; ++i) *reinterpret_cast<Held*>(tile.vector(row(i), vector(i))) = held_[i];
  }

 private:
  struct alignas(16) Held {
    T at[V];
  };
  DEVICE static int row(int i) {
    return vectors ? threadIdx.x / per_pixel + i * (threads / per_pixel) : threadIdx.x % depth<T>;
  }
  DEVICE static int vector(int i) {
    return vectors ? threadIdx.x % per_pixel : threadIdx.x / depth<T> + i * (threads / depth<T>);
  }

  // A pixel and the address of the first element of its window.
  struct Pixel {
    MixedRadix digits;
    int left;  // pixels of the chunk from this one on; none if <= 0
    const T* first;
  };
  DEVICE int h(const Pixel& at) const { return at.digits.b * from_.stride_h - from_.pad_h; }
  DEVICE int w(const Pixel& at) const { return at.digits.c * from_.stride_w - from_.pad_w; }

  const Gather& from_;
  const WindowStep& walk_;
  const PixelStepper& counter_;
  const Tap* taps_;
  Pixel pixels_[pixels];
  Held held_[count];
};

// Accumulates one tile of one chunk. Writes partials[chunk][group][k][r s c].
template <class Math, bool y_vectors, bool x_vectors, int BN>
KERNEL(threads, (y_vectors && x_vectors ? Math::blocks : 1))
correlate_weight(const GradWeightParams product, const typename Math::Element* y, const typename Math::Element* x,
                 typename Math::Acc* partials) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  using YReader = GatherReader<T, tile_rows, y_vectors>;
  using XReader = GatherReader<T, BN, x_vectors>;
  using YTile = typename YReader::Tile;
  using XTile = typename XReader::Tile;
  using Warp = WarpTile<BN>;
  constexpr int stage_bytes = YTile::bytes() + XTile::bytes();
  SHARED_MEMORY(memory);
  SHARED Tap y_taps[tile_rows], x_taps[BN];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t block = blockIdx.x;
  const int column = block % product.columns * BN, row = block / product.columns % product.rows * tile_rows;
  block /= int64_t(product.columns) * product.rows;
  const int group = block % product.groups;
  const int chunk = block / product.groups, first = chunk * product.chunk_pixels,
            end_pixel = min(first + product.chunk_pixels, product.pixel_count);

  YReader y_reader(product.y, product.y_walk, product.pixels, y, y_taps, group, row, first, end_pixel);
  XReader x_reader(product.x, product.x_walk, product.pixels, x, x_taps, group, column, first, end_pixel);
  __syncthreads();  // the taps are in shared memory
  const auto y_tile = [&](int stage) { return YTile{reinterpret_cast<T*>(memory + stage * stage_bytes)}; };
  const auto x_tile = [&](int stage) {
    return XTile{reinterpret_cast<T*>(memory + stage * stage_bytes + YTile::bytes())};
  };
  const int steps = (end_pixel - first + depth<T> - 1) / depth<T>;
  const auto begin = [&](int step) {
    if (step >= steps) return;
    y_reader.begin(y_tile(step % stages));
    x_reader.begin(x_tile(step % stages));
  };
  const auto end = [&](int step) {
    if (step < steps) {
      y_reader.end(y_tile(step % stages));
      x_reader.end(x_tile(step % stages));
    }
    ptx::commit_copies();
  };

  for (int step = 0; step < stages - 1; ++step) {
    begin(step);
    end(step);
  }
  typename Math::template AccTile<Warp::rows> sums{};
  for (int step = 0; step < steps; ++step) {
    ptx::wait_copies<stages - 2>();
    __syncthreads();  // as in gemm.cuh
    begin(step + stages - 1);
    Math::multiply(sums, y_tile(step % stages), Warp::row(warp), x_tile(step % stages), Warp::column(warp), lane);
    end(step + stages - 1);
  }

  Acc* to = partials + chunk * product.sums_per_chunk() + int64_t(group) * product.y.C * product.x.width();
  Math::template each<YTile>(sums, lane, [&](int m, int n, Acc sum) {
    const int k = row + Warp::row(warp) + m, at = column + Warp::column(warp) + n;
    if (k < product.y.C && at < product.x.width()) to[int64_t(k) * product.x.width() + at] = sum;
  });
}

// Reduces the chunks in order, rounds to T and writes w.
template <class T, class Acc>
KERNEL(threads, 1)
reduce_chunks(const GradWeightParams product, const Acc* partials, T* w) {
  const int64_t count = product.sums_per_chunk();
  for (int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x; i < count; i += int64_t(gridDim.x) * threads) {
    Acc sum = 0;
    for (int chunk = 0; chunk < product.chunks; ++chunk) sum += partials[chunk * count + i];
    const MixedRadix at = product.x.window_coords(i % product.x.width());
    const int64_t k = i / product.x.width();
    w[k * product.w.n + at.c * product.w.c + at.a * product.w.h + at.b * product.w.w] = T(sum);
  }
}

}  // namespace torchconv::cuda
