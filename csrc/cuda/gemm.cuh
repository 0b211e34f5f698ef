// Correlation (forward and grad_input) as an implicit matrix product: y [pixels, K] = im2col(x) [pixels, R S C] times
// w [R S C, K], one product per group.
//
// A thread block computes 128 pixels x BN output channels. Its two operand tiles, 64 bytes of the reduction each, pass
// through a ring of shared-memory stages that cp.async fills while earlier stages are multiplied. The weights are
// packed beforehand as [group][output channel][r s c].
#pragma once

#include "../epilogue.h"
#include "tile_math.cuh"
#include "geometry.cuh"

namespace torchconv::cuda {

constexpr int stages = 4;  // of the shared-memory ring

// A correlation (see ../correlation.h) and the layout of its packed weights.
struct CorrelateParams {
  Gather x;
  int P, Q, K, groups;  // K: output channels per group
  int64_t pixels;       // N P Q
  Strides y, w;         // w: of the unpacked weights; only pack_weights reads it
  int64_t w_group;
  int64_t packed_rows, packed_columns;  // per group: K and R S C, padded to multiples of BN and depth
  bool y_vectors;                       // whether y can be written in 16-byte vectors of channels
  Epilogue epilogue;

  HOST_DEVICE int64_t packed_size() const { return groups * packed_rows * packed_columns; }
  // The length of the tap list: one tap per packed column, and one more tile for the prefetch past the end.
  template <class T>
  HOST_DEVICE int64_t tap_count() const {
    return packed_columns + depth<T>;
  }
};

// The first pixel and the first output channel of a thread block's tile, and its group. Thread blocks with the same
// pixels have consecutive numbers, so that they share x in L2.
struct BlockTile {
  int64_t pixel;
  int channel, group;
};

template <int BN>
DEVICE BlockTile place(const CorrelateParams& product) {
  const int64_t column = blockIdx.x % (product.packed_rows / BN * product.groups);
  return {blockIdx.x / (product.packed_rows / BN * product.groups) * tile_rows,
          int(column % (product.packed_rows / BN)) * BN, int(column / (product.packed_rows / BN))};
}

// The first element of a pixel's window: its position and its offset in x, in elements. Pixels beyond the last get a
// position outside the input.
struct Window {
  int h, w;
  int64_t offset;
};

DEVICE Window window(const Gather& x, int64_t pixel, int64_t pixels, int P, int Q) {
  if (pixel >= pixels) return {far_outside, far_outside, 0};
  const int q = pixel % Q, p = pixel / Q % P, h = p * x.stride_h - x.pad_h, w = q * x.stride_w - x.pad_w;
  return {h, w, pixel / Q / P * x.x.n + h * x.x.h + w * x.x.w};
}

// Fills tiles of x with 16-byte vectors of channels by cp.async. Adjacent threads copy the vectors of one pixel.
template <class T>
class VectorReader {
  static constexpr int count = tile_rows * 4 / threads;

 public:
  DEVICE VectorReader(const CorrelateParams& product, const T* x, const Tap* taps, const BlockTile& place)
      : product_(product),
        x_(x + int64_t(place.group) * product.x.C * product.x.x.c),
        taps_(taps + threadIdx.x % 4 * vector_size<T>),
        tap_(*taps_) {
    UNROLL (int i = 0; i < count; ++i)
      windows_[i] = window(product.x, place.pixel + row(i), product.pixels, product.P, product.Q);
  }

  // Starts the copy of the next tile. Its tap was prefetched with the tile before.
  DEVICE void begin(const KMajorTile<T>& tile) {
    UNROLL (int i = 0; i < count; ++i) {
      const Window& at = windows_[i];
      ptx::copy_async(tile.vector(row(i), threadIdx.x % 4), x_ + at.offset + tap_.offset,
                      product_.x.contains(at.h + tap_.h, at.w + tap_.w));
    }
    taps_ += depth<T>;
    tap_ = *taps_;
  }
  DEVICE void end(const KMajorTile<T>&) {}

 private:
  DEVICE static int row(int i) { return threadIdx.x / 4 + i * (threads / 4); }

  const CorrelateParams& product_;
  const T* x_;
  const Tap* taps_;
  Tap tap_;
  Window windows_[count];
};

// Fills tiles of x by scalar loads, for any layout and number of channels. Adjacent threads load adjacent pixels, and
// all threads of a warp the same tap. begin() loads a tile into registers and end() stores it to shared memory, so that
// the loads overlap with the multiplication of an earlier tile.
template <class T>
class ScalarReader {
  static constexpr int count = tile_rows * 4 / threads, V = vector_size<T>;

 public:
  DEVICE ScalarReader(const CorrelateParams& product, const T* x, const Tap* taps, const BlockTile& place)
      : product_(product), taps_(taps + vector(0) * V) {
    const Window at = window(product.x, place.pixel + threadIdx.x % tile_rows, product.pixels, product.P, product.Q);
    h_ = at.h;
    w_ = at.w;
    first_ = x + int64_t(place.group) * product.x.C * product.x.x.c + at.offset;
  }

  DEVICE void begin(const KMajorTile<T>&) {
    UNROLL (int i = 0; i < count; ++i)
      UNROLL (int e = 0; e < V; ++e) {
        const Tap tap = taps_[i * step * V + e];
        held_[i].at[e] = product_.x.contains(h_ + tap.h, w_ + tap.w) ? first_[tap.offset] : T(0);
      }
    taps_ += depth<T>;
  }
  DEVICE void end(const KMajorTile<T>& tile) {
    UNROLL (int i = 0; i < count; ++i)
      *reinterpret_cast<Held*>(tile.vector(threadIdx.x % tile_rows, vector(i))) = held_[i];
  }

 private:
  struct alignas(16) Held {
    T at[V];
  };
  static constexpr int step = threads / tile_rows;
  DEVICE static int vector(int i) { return threadIdx.x / tile_rows + i * step; }

  const CorrelateParams& product_;
  const Tap* taps_;
  const T* first_;
  int h_, w_;
  Held held_[count];
};

// Fills tiles of packed weights with 16-byte vectors by cp.async.
template <class T, int BN>
class WeightReader {
 public:
  DEVICE WeightReader(const CorrelateParams& product, const T* packed, const BlockTile& place)
      : product_(product),
        from_(packed + (place.group * product.packed_rows + place.channel + threadIdx.x / 4) * product.packed_columns +
              threadIdx.x % 4 * vector_size<T>) {}

  DEVICE void begin(const KMajorTile<T>& tile) {
    UNROLL (int i = 0; i < count; ++i) {
      const int line = threadIdx.x / 4 + i * (threads / 4);
      if (BN >= threads / 4 || line < BN)
        ptx::copy_async(tile.vector(line, threadIdx.x % 4), from_ + i * (threads / 4) * product_.packed_columns, true);
    }
    from_ += depth<T>;
  }

 private:
  static constexpr int count = (BN * 4 + threads - 1) / threads;

  const CorrelateParams& product_;
  const T* from_;
};

// Applies the epilogue to the accumulators of a thread block and writes them to y. `sums` is the staging buffer in
// shared memory, [pixel][channel] with `pitch` elements per pixel. `offsets` has each pixel's offset in y, -1 beyond
// the last.
template <class T, class Acc, int BN>
DEVICE void store(const CorrelateParams& product, const BlockTile& place, const Acc* sums, int pitch,
                  const int64_t* offsets, T* y) {
  const int channels = min(BN, product.K - place.channel), first = place.group * product.K + place.channel;
  const Epilogue& epilogue = product.epilogue;
  const auto* bias = static_cast<const T*>(epilogue.bias);
  const auto finish = [&](Acc sum, int channel) {
    const Acc b = bias ? Acc(bias[(first + channel) * epilogue.bias_stride]) : Acc(0);
    return T(activate(epilogue.activation, sum + b, Acc(epilogue.slope)));
  };
  constexpr int V = vector_size<T>;
  struct alignas(16) Vector {
    T at[V];
  };
  if (product.y_vectors) {
    for (int i = threadIdx.x; i < tile_rows * BN / V; i += threads) {
      const int row = i / (BN / V), channel = i % (BN / V) * V;
      if (channel >= channels || offsets[row] < 0) continue;
      Vector vector;
      UNROLL (int e = 0; e < V; ++e) vector.at[e] = finish(sums[row * pitch + channel + e], channel + e);
      *reinterpret_cast<Vector*>(y + offsets[row] + first + channel) = vector;
    }
    return;
  }
  // Adjacent threads write adjacent channels or adjacent pixels, whichever are contiguous in y.
  const bool by_channels = product.y.c == 1;
  for (int i = threadIdx.x; i < tile_rows * BN; i += threads) {
    const int row = by_channels ? i / BN : i % tile_rows, channel = by_channels ? i % BN : i / tile_rows;
    if (channel >= channels || offsets[row] < 0) continue;
    y[offsets[row] + (first + channel) * product.y.c] = finish(sums[row * pitch + channel], channel);
  }
}

// The shared memory of `correlate` in bytes: the ring of stages, reused as the staging buffer of the accumulators.
template <class Math, int BN>
struct Shared {
  using T = typename Math::Element;
  static constexpr int x_bytes = KMajorTile<T>::bytes(tile_rows), stage_bytes = x_bytes + KMajorTile<T>::bytes(BN);
  static constexpr int max_pitch = BN + 4;  // of the staging buffer, in accumulators
  static constexpr int bytes = std::max(stages * stage_bytes, tile_rows * max_pitch * int(sizeof(typename Math::Acc)));
};

// Computes one tile of y: 128 pixels x BN output channels of one group.
template <class Math, template <class> class Reader, int BN>
KERNEL(threads, Math::blocks)
correlate(const CorrelateParams product, const typename Math::Element* x, const typename Math::Element* packed,
          const Tap* taps, typename Math::Element* y) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  using Shared = cuda::Shared<Math, BN>;
  using Warp = WarpTile<BN>;
  SHARED_MEMORY(memory);
  SHARED int64_t offsets[tile_rows];  // of the pixels in y, or -1
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const BlockTile at = place<BN>(product);
  for (int row = threadIdx.x; row < tile_rows; row += threads) {
    const int64_t pixel = at.pixel + row;
    offsets[row] = pixel >= product.pixels
                       ? -1
                       : pixel / product.Q / product.P * product.y.n + pixel / product.Q % product.P * product.y.h +
                             pixel % product.Q * product.y.w;
  }

  Reader<T> reader(product, x, taps, at);
  WeightReader<T, BN> weights(product, packed, at);
  const auto x_tile = [&](int stage) {
    return KMajorTile<T>{reinterpret_cast<T*>(memory + stage * Shared::stage_bytes)};
  };
  const auto w_tile = [&](int stage) {
    return KMajorTile<T>{reinterpret_cast<T*>(memory + stage * Shared::stage_bytes + Shared::x_bytes)};
  };
  const int steps = product.packed_columns / depth<T>;
  const auto begin = [&](int step) {
    if (step >= steps) return;
    reader.begin(x_tile(step % stages));
    weights.begin(w_tile(step % stages));
  };
  const auto end = [&](int step) {
    if (step < steps) reader.end(x_tile(step % stages));
    ptx::commit_copies();
  };

  for (int step = 0; step < stages - 1; ++step) {
    begin(step);
    end(step);
  }
  typename Math::template AccTile<Warp::rows> sums{};
  for (int step = 0; step < steps; ++step) {
    ptx::wait_copies<stages - 2>();
    __syncthreads();  // this step's tile has arrived, and no warp still reads the previous one
    begin(step + stages - 1);
    Math::multiply(sums, x_tile(step % stages), Warp::row(warp), w_tile(step % stages), Warp::column(warp), lane);
    end(step + stages - 1);
  }
  ptx::wait_copies<0>();
  __syncthreads();

  // The ring becomes the staging buffer. Its pitch keeps the threads of a warp in `store` on different banks.
  auto* staging = reinterpret_cast<Acc*>(memory);
  const int pitch = product.y.c == 1 ? Shared::max_pitch : BN + 1;
  Math::template each<KMajorTile<T>>(sums, lane, [&](int row, int column, Acc sum) {
    staging[(Warp::row(warp) + row) * pitch + Warp::column(warp) + column] = sum;
  });
  __syncthreads();
  store<T, Acc, BN>(product, place<BN>(product), staging, pitch, offsets, y);  // keeping `at` would cost registers
}

// Writes packed[group][output channel][r s c], zero-padded to packed_rows x packed_columns per group, and the list of
// the taps of its columns.
template <class T>
KERNEL(threads, 1)
pack_weights(const CorrelateParams product, const T* w, T* packed, Tap* taps) {
  const Gather& x = product.x;
  const int64_t first = int64_t(blockIdx.x) * threads + threadIdx.x, step = int64_t(gridDim.x) * threads;
  for (int64_t i = first; i < product.template tap_count<T>(); i += step) taps[i] = x.tap(i);
  for (int64_t i = first; i < product.packed_size(); i += step) {
    const int64_t column = i % product.packed_columns, row = i / product.packed_columns % product.packed_rows,
                  group = i / product.packed_columns / product.packed_rows;
    T value(0);
    if (row < product.K && column < x.width()) {
      const MixedRadix at = x.window_coords(column);
      value =
          w[group * product.w_group + row * product.w.n + at.a * product.w.h + at.b * product.w.w + at.c * product.w.c];
    }
    packed[i] = value;
  }
}

}  // namespace torchconv::cuda
