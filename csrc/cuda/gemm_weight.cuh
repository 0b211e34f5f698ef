// grad_weight as an implicit matrix product: w [K, R S C] = y [pixels, K], transposed, times x, gathered
// [pixels, R S C].
//
// Pixels are cut into chunks, each a block of its own, whose sums wait in memory and are then added up in the order of
// the chunks: the same bits in every run. Both tiles have 64 bytes of pixels, [pixel][channel].
#pragma once

#include "gemm.cuh"

namespace torchconv::cuda {

// From the first element of a pixel's window to that of the pixel a tile further.
struct Walk {
  int64_t step, row, image;  // the last two: what is added, if that pixel is in another row, in another image

  HOST_DEVICE int64_t of(const Counter::Carries& carries) const {
    return step + (carries.b ? row : 0) + (carries.a ? image : 0);
  }
};

inline Walk walk(const Gather& from, const Counter& pixels) {
  const uint64_t n = from.x.n, h = from.stride_h * from.x.h, w = from.stride_w * from.x.w;  // overflows do no harm
  return {int64_t(pixels.step.a * n + pixels.step.b * h + pixels.step.c * w), int64_t(h - pixels.c_end * w),
          int64_t(n - pixels.b_end * h)};
}

struct WeightProduct {
  Gather y, x;  // y: windows of one tap, K channels
  Walk y_walk, x_walk;
  int groups;
  Counter pixels;   // (n, p, q), a tile at a time
  int pixel_count;  // of all
  int chunk_pixels, chunks;
  int rows, columns;  // tiles
  Strides w;

  HOST_DEVICE int64_t sums_per_chunk() const { return int64_t(groups) * y.C * x.width(); }
};

// Fills tiles with a column of vectors of channels, or of their elements one by one. Vectors: neighbouring threads take
// the vectors of one pixel. Elements: those of neighbouring pixels.
template <class T, int width, bool vectors>
class ColumnReader {
  static constexpr int V = vector_size<T>, per_pixel = width / V, count = depth<T> * per_pixel / threads;
  static constexpr int pixels = vectors ? count : 1;

 public:
  using Tile = Columns<T, width>;

  // The columns of the tile from `column` on, whose taps are put into `taps`, and the pixels in [pixel, end).
  DEVICE ColumnReader(const Gather& from, const Walk& walk, const Counter& counter, const T* data, Tap* taps, int group,
                      int column, int pixel, int end)
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

  struct Pixel {
    Digits digits;
    int left;  // pixels of the chunk, from this one on
    const T* first;
  };
  DEVICE int h(const Pixel& at) const { return at.digits.b * from_.stride_h - from_.pad_h; }
  DEVICE int w(const Pixel& at) const { return at.digits.c * from_.stride_w - from_.pad_w; }

  const Gather& from_;
  const Walk& walk_;
  const Counter& counter_;
  const Tap* taps_;
  Pixel pixels_[pixels];
  Held held_[count];
};

// sums[chunk][group][k][r s c]
template <class Math, bool y_vectors, bool x_vectors, int BN>
KERNEL(threads, (y_vectors && x_vectors ? Math::blocks : 1))
correlate_weight(const WeightProduct product, const typename Math::Number* y, const typename Math::Number* x,
                 typename Math::Sum* sums_of_chunks) {
  using T = typename Math::Number;
  using Sum = typename Math::Sum;
  using YReader = ColumnReader<T, tile_rows, y_vectors>;
  using XReader = ColumnReader<T, BN, x_vectors>;
  using YTile = typename YReader::Tile;
  using XTile = typename XReader::Tile;
  using Part = WarpTile<BN>;
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
  __syncthreads();  // the taps are there
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
    if (step < steps) y_reader.end(y_tile(step % stages)), x_reader.end(x_tile(step % stages));
    ptx::commit_copies();
  };

  for (int step = 0; step < stages - 1; ++step) begin(step), end(step);
  typename Math::template Sums<Part::rows> sums{};
  for (int step = 0; step < steps; ++step) {
    ptx::wait_copies<stages - 2>();
    __syncthreads();  // as in gemm.cuh
    begin(step + stages - 1);
    Math::multiply(sums, y_tile(step % stages), Part::row(warp), x_tile(step % stages), Part::column(warp), lane);
    end(step + stages - 1);
  }

  Sum* to = sums_of_chunks + chunk * product.sums_per_chunk() + int64_t(group) * product.y.C * product.x.width();
  Math::template each<YTile>(sums, lane, [&](int m, int n, Sum sum) {
    const int k = row + Part::row(warp) + m, at = column + Part::column(warp) + n;
    if (k < product.y.C && at < product.x.width()) to[int64_t(k) * product.x.width() + at] = sum;
  });
}

template <class T, class Sum>
KERNEL(threads, 1)
add_chunks(const WeightProduct product, const Sum* sums_of_chunks, T* w) {
  const int64_t count = product.sums_per_chunk();
  for (int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x; i < count; i += int64_t(gridDim.x) * threads) {
    Sum sum = 0;
    for (int chunk = 0; chunk < product.chunks; ++chunk) sum += sums_of_chunks[chunk * count + i];
    const Digits at = product.x.product(i % product.x.width());
    const int64_t k = i / product.x.width();
    w[k * product.w.n + at.c * product.w.c + at.a * product.w.h + at.b * product.w.w] = T(sum);
  }
}

}  // namespace torchconv::cuda
