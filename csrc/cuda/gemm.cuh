// The convolution as an implicit matrix product: y [pixels, K] = x, gathered [pixels, R S C] times w [R S C, K].
//
// A block makes 128 pixels x BN channels. Its two tiles of 64 bytes of the reduction go through a ring of stages in
// shared memory, filled by cp.async while earlier ones are multiplied. The weights come packed, [channel][r s c].
#pragma once

#include "../epilogue.h"
#include "math.cuh"
#include "problem.cuh"

namespace torchconv::cuda {

constexpr int stages = 4;

// A correlation (see ../correlation.h) and how its weights are packed.
struct Product {
  Gather x;  // strides of w as they are, of the packing alone
  int P, Q, K, groups;
  int64_t pixels;
  Strides y, w;
  int64_t w_group;
  int64_t packed_rows, packed_columns;  // of a group: multiples of BN and of the depth
  bool y_vectors;
  Epilogue epilogue;

  HOST_DEVICE int64_t packed_size() const { return groups * packed_rows * packed_columns; }
  // Of a list that has one tap for each packed column, and a tile of them behind.
  template <class T>
  HOST_DEVICE int64_t tap_count() const {
    return packed_columns + depth<T>;
  }
};

// Which pixels, channels and group a block makes. Blocks of the same pixels follow one another: they read them from L2.
struct Place {
  int64_t pixel;
  int channel, group;
};

template <int BN>
DEVICE Place place(const Product& product) {
  const int64_t column = blockIdx.x % (product.packed_rows / BN * product.groups);
  return {blockIdx.x / (product.packed_rows / BN * product.groups) * tile_rows,
          int(column % (product.packed_rows / BN)) * BN, int(column / (product.packed_rows / BN))};
}

// The first element of the window of a pixel.
struct Window {
  int h, w;
  int64_t offset;
};

DEVICE Window window(const Gather& x, int64_t pixel, int64_t pixels, int P, int Q) {
  if (pixel >= pixels) return {far_outside, far_outside, 0};
  const int q = pixel % Q, p = pixel / Q % P, h = p * x.stride_h - x.pad_h, w = q * x.stride_w - x.pad_w;
  return {h, w, pixel / Q / P * x.x.n + h * x.x.h + w * x.x.w};
}

// Fills tiles of x with vectors of channels: neighbouring threads take the vectors of one pixel.
template <class T>
class VectorReader {
  static constexpr int count = tile_rows * 4 / threads;

 public:
  DEVICE VectorReader(const Product& product, const T* x, const Tap* taps, const Place& place)
      : product_(product),
        x_(x + int64_t(place.group) * product.x.C * product.x.x.c),
        taps_(taps + threadIdx.x % 4 * vector_size<T>),
        tap_(*taps_) {
    UNROLL (int i = 0; i < count; ++i)
      windows_[i] = window(product.x, place.pixel + row(i), product.pixels, product.P, product.Q);
  }

  // The next tile. Its tap was read a tile before.
  DEVICE void begin(const Lines<T>& tile) {
    UNROLL (int i = 0; i < count; ++i) {
      const Window& at = windows_[i];
      ptx::copy_async(tile.vector(row(i), threadIdx.x % 4), x_ + at.offset + tap_.offset,
                      product_.x.contains(at.h + tap_.h, at.w + tap_.w));
    }
    taps_ += depth<T>;
    tap_ = *taps_;
  }
  DEVICE void end(const Lines<T>&) {}

 private:
  DEVICE static int row(int i) { return threadIdx.x / 4 + i * (threads / 4); }

  const Product& product_;
  const T* x_;
  const Tap* taps_;
  Tap tap_;
  Window windows_[count];
};

// The same element by element, for any layout and number of channels: neighbouring threads take neighbouring pixels,
// and all of a warp the same tap.
// The elements wait in registers while the tile before them is multiplied.
template <class T>
class NumberReader {
  static constexpr int count = tile_rows * 4 / threads, V = vector_size<T>;

 public:
  DEVICE NumberReader(const Product& product, const T* x, const Tap* taps, const Place& place)
      : product_(product), taps_(taps + vector(0) * V) {
    const Window at = window(product.x, place.pixel + threadIdx.x % tile_rows, product.pixels, product.P, product.Q);
    h_ = at.h, w_ = at.w;
    first_ = x + int64_t(place.group) * product.x.C * product.x.x.c + at.offset;
  }

  DEVICE void begin(const Lines<T>&) {
    UNROLL (int i = 0; i < count; ++i)
      UNROLL (int e = 0; e < V; ++e) {
        const Tap tap = taps_[i * step * V + e];
        held_[i].at[e] = product_.x.contains(h_ + tap.h, w_ + tap.w) ? first_[tap.offset] : T(0);
      }
    taps_ += depth<T>;
  }
  DEVICE void end(const Lines<T>& tile) {
    UNROLL (int i = 0; i < count; ++i)
      *reinterpret_cast<Held*>(tile.vector(threadIdx.x % tile_rows, vector(i))) = held_[i];
  }

 private:
  struct alignas(16) Held {
    T at[V];
  };
  static constexpr int step = threads / tile_rows;
  DEVICE static int vector(int i) { return threadIdx.x / tile_rows + i * step; }

  const Product& product_;
  const Tap* taps_;
  const T* first_;
  int h_, w_;
  Held held_[count];
};

// Fills tiles of packed weights.
template <class T, int BN>
class WeightReader {
 public:
  DEVICE WeightReader(const Product& product, const T* packed, const Place& place)
      : product_(product),
        from_(packed + (place.group * product.packed_rows + place.channel + threadIdx.x / 4) * product.packed_columns +
              threadIdx.x % 4 * vector_size<T>) {}

  DEVICE void begin(const Lines<T>& tile) {
    UNROLL (int i = 0; i < count; ++i) {
      const int line = threadIdx.x / 4 + i * (threads / 4);
      if (BN >= threads / 4 || line < BN)
        ptx::copy_async(tile.vector(line, threadIdx.x % 4), from_ + i * (threads / 4) * product_.packed_columns, true);
    }
    from_ += depth<T>;
  }

 private:
  static constexpr int count = (BN * 4 + threads - 1) / threads;

  const Product& product_;
  const T* from_;
};

// Writes the sums of a block, which wait in shared memory: [pixel][channel].
template <class T, class Sum, int BN>
DEVICE void store(const Product& product, const Place& place, const Sum* sums, int pitch, const int64_t* offsets,
                  T* y) {
  const int channels = min(BN, product.K - place.channel), first = place.group * product.K + place.channel;
  const Epilogue& epilogue = product.epilogue;
  const auto* bias = static_cast<const T*>(epilogue.bias);
  const auto finish = [&](Sum sum, int channel) {
    const Sum b = bias ? Sum(bias[(first + channel) * epilogue.bias_stride]) : Sum(0);
    return T(activate(epilogue.activation, sum + b, Sum(epilogue.slope)));
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
  // Neighbouring threads take what lies together in memory.
  const bool by_channels = product.y.c == 1;
  for (int i = threadIdx.x; i < tile_rows * BN; i += threads) {
    const int row = by_channels ? i / BN : i % tile_rows, channel = by_channels ? i % BN : i / tile_rows;
    if (channel >= channels || offsets[row] < 0) continue;
    y[offsets[row] + (first + channel) * product.y.c] = finish(sums[row * pitch + channel], channel);
  }
}

template <class Math, int BN>
struct Shared {
  using T = typename Math::Number;
  static constexpr int x_bytes = Lines<T>::bytes(tile_rows), stage_bytes = x_bytes + Lines<T>::bytes(BN);
  static constexpr int most_pitch = BN + 4;
  static constexpr int bytes = std::max(stages * stage_bytes, tile_rows * most_pitch * int(sizeof(typename Math::Sum)));
};

template <class Math, template <class> class Reader, int BN>
KERNEL(threads, Math::blocks)
correlate(const Product product, const typename Math::Number* x, const typename Math::Number* packed, const Tap* taps,
          typename Math::Number* y) {
  using T = typename Math::Number;
  using Sum = typename Math::Sum;
  using Shared = cuda::Shared<Math, BN>;
  using Part = WarpTile<BN>;
  SHARED_MEMORY(memory);
  SHARED int64_t offsets[tile_rows];  // of y, or -1
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Place at = place<BN>(product);
  for (int row = threadIdx.x; row < tile_rows; row += threads) {
    const int64_t pixel = at.pixel + row;
    offsets[row] = pixel >= product.pixels
                       ? -1
                       : pixel / product.Q / product.P * product.y.n + pixel / product.Q % product.P * product.y.h +
                             pixel % product.Q * product.y.w;
  }

  Reader<T> reader(product, x, taps, at);
  WeightReader<T, BN> weights(product, packed, at);
  const auto x_tile = [&](int stage) { return Lines<T>{reinterpret_cast<T*>(memory + stage * Shared::stage_bytes)}; };
  const auto w_tile = [&](int stage) {
    return Lines<T>{reinterpret_cast<T*>(memory + stage * Shared::stage_bytes + Shared::x_bytes)};
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

  for (int step = 0; step < stages - 1; ++step) begin(step), end(step);
  typename Math::template Sums<Part::rows> sums{};
  for (int step = 0; step < steps; ++step) {
    ptx::wait_copies<stages - 2>();
    __syncthreads();  // this tile is there, and the one before it is no longer read
    begin(step + stages - 1);
    Math::multiply(sums, x_tile(step % stages), Part::row(warp), w_tile(step % stages), Part::column(warp), lane);
    end(step + stages - 1);
  }
  ptx::wait_copies<0>();
  __syncthreads();

  // Pitches that keep the threads of `store` on different banks.
  auto* waiting = reinterpret_cast<Sum*>(memory);
  const int pitch = product.y.c == 1 ? Shared::most_pitch : BN + 1;
  Math::template each<Lines<T>>(sums, lane, [&](int row, int column, Sum sum) {
    waiting[(Part::row(warp) + row) * pitch + Part::column(warp) + column] = sum;
  });
  __syncthreads();
  store<T, Sum, BN>(product, place<BN>(product), waiting, pitch, offsets, y);  // not `at`: that took registers
}

// packed[group][channel][r s c], with zeros around; and the taps of its columns.
template <class T>
KERNEL(threads, 1)
pack_weights(const Product product, const T* w, T* packed, Tap* taps) {
  const Gather& x = product.x;
  const int64_t first = int64_t(blockIdx.x) * threads + threadIdx.x, step = int64_t(gridDim.x) * threads;
  for (int64_t i = first; i < product.template tap_count<T>(); i += step) taps[i] = x.tap(i);
  for (int64_t i = first; i < product.packed_size(); i += step) {
    const int64_t column = i % product.packed_columns, row = i / product.packed_columns % product.packed_rows,
                  group = i / product.packed_columns / product.packed_rows;
    T value(0);
    if (row < product.K && column < x.width()) {
      const Digits at = x.product(column);
      value =
          w[group * product.w_group + row * product.w.n + at.a * product.w.h + at.b * product.w.w + at.c * product.w.c];
    }
    packed[i] = value;
  }
}

}  // namespace torchconv::cuda
