// Batch normalization with an activation (../../batch_norm.h). Every function is a pass over memory: lanes are channels
// where these are contiguous, else pixels. Sums are taken over blocks that depend on the shape alone, in the
// accumulator type, and those of the blocks are added in order, in float64.

#include "../pack/fused_epilogue.h"

namespace batch_norm {

// How a tensor is cut into blocks. In channels_last, a block is some pixels of the batch, with all their channels.
// Otherwise it is a channel of some images, or a part of a channel of one image.
struct Blocks {
  static constexpr int64_t min_pixels = 16, usual_pixels = 256, part_of_channel = 4096;

  const BatchNormShape& shape;
  int64_t per_block;      // pixels, in channels_last
  int64_t images, parts;  // of a block; of an image's channel
  int64_t count;          // blocks of a channel

  explicit Blocks(const BatchNormShape& shape) : shape(shape) {
    const int64_t pixels = shape.N * shape.P, most = std::clamp<int64_t>((1 << 20) / shape.C, 1, 1024);
    per_block = std::max(ceil_div(pixels, most), std::clamp(ceil_div(pixels, 64), min_pixels, usual_pixels));
    images = std::max<int64_t>(1, part_of_channel / shape.P);
    parts = ceil_div(shape.P, part_of_channel);
    count = shape.channels_last ? ceil_div(pixels, per_block) : ceil_div(shape.N, images) * parts;
  }

  // The images and, of each, the pixels of block i; in channels_last, one run of pixels of the batch.
  int64_t rows(int64_t i) const { return shape.channels_last ? 1 : std::min(images, shape.N - i / parts * images); }
  int64_t begin(int64_t i) const {
    return shape.channels_last ? i * per_block : split_begin(shape.P, parts, i % parts);
  }
  int64_t width(int64_t i) const {
    return shape.channels_last ? std::min(per_block, shape.N * shape.P - begin(i))
                               : split_begin(shape.P, parts, i % parts + 1) - begin(i);
  }
  int64_t pixels(int64_t i) const { return rows(i) * width(i); }
  int64_t pixels_before(int64_t i) const { return (shape.channels_last ? 0 : i / parts * images * shape.P) + begin(i); }

  // The first element of block i in a channel.
  int64_t first(int64_t i, int64_t channel) const {
    return shape.channels_last ? begin(i) * shape.C + channel
                               : (i / parts * images * shape.C + channel) * shape.P + begin(i);
  }
};

// A vector of elements of a tensor: the first one and its channel, and how many they are.
struct Place {
  int64_t offset, channel;
  int count;
};

template <class S>
INLINE Vector<S> load_at(const S* p, const Place& place) {
  return place.count == lanes<S> ? load(p + place.offset) : load(p + place.offset, place.count);
}

template <class S>
INLINE void store_at(S* p, Vector<S> v, const Place& place) {
  if (place.count == lanes<S>) {
    store(p + place.offset, v);
  } else {
    store(p + place.offset, v, place.count);
  }
}

// Numbers of each channel.
template <class S>
class PerChannel {
 public:
  using T = Acc<S>;

  // Copies them, so that whole vectors can be read.
  PerChannel(const BatchNormShape& shape, const void* values, Scratch& scratch)
      : values_(scratch.take<T>(shape.C)), lanes_are_channels_(shape.channels_last) {
    std::memcpy(values_, values, shape.C * sizeof(T));
  }

  INLINE Vector<S> at(const Place& place) const {
    return lanes_are_channels_ ? load(values_ + place.channel) : broadcast(values_[place.channel]);
  }

 private:
  T* values_;
  bool lanes_are_channels_;
};

// The numbers of channels: (x - mean) * scale + shift.
template <class S>
class Normalization {
 public:
  struct State {
    Vector<S> mean, scale, shift;

    INLINE Vector<S> operator()(Vector<S> difference) const { return fma(difference, scale, shift); }
  };

  Normalization(const BatchNormShape& shape, const BatchNormChannels& channels, Scratch& scratch)
      : mean_(shape, channels.mean, scratch),
        scale_(shape, channels.scale, scratch),
        shift_(shape, channels.shift, scratch) {}

  INLINE State at(const Place& place) const { return {mean_.at(place), scale_.at(place), shift_.at(place)}; }

 private:
  PerChannel<S> mean_, scale_, shift_;
};

// An activation and its gradient. The usual ones are known at compile time; of others, `kind` is -1.
template <class T, int kind>
struct ActivationOf {
  using V = typename Simd<T>::V;

  Activation activation;
  T slope;

  INLINE Activation which() const { return kind >= 0 ? Activation(kind) : activation; }

  INLINE V operator()(V v) const { return FusedEpilogue<T>{nullptr, which(), slope}(v, 0); }

  // The gradient before it: dz times its slope where its argument, or its result, is v.
  INLINE V gradient(V dz, V v, bool is_result) const {
    const V zero{}, one = broadcast(T(1));
    switch (which()) {
      case Activation::none: return dz;
      case Activation::relu: return v <= zero ? zero : dz;
      case Activation::relu6: {
        const V below = v >= broadcast(T(6)) ? zero : dz;
        return v <= zero ? zero : below;
      }
      case Activation::leaky_relu: return v > zero ? dz : dz * broadcast(slope);
      default: break;
    }
    const V z = is_result ? v : (*this)(v);
    return which() == Activation::sigmoid ? dz * z * (one - z) : dz * (one - z * z);
  }
};

// Calls body(ActivationOf).
template <class S, class Body>
void with_activation(const BatchNormShape& shape, const Body& body) {
  using T = Acc<S>;
  switch (shape.activation) {
    case Activation::none: return body(ActivationOf<T, int(Activation::none)>{shape.activation, T(shape.slope)});
    case Activation::relu: return body(ActivationOf<T, int(Activation::relu)>{shape.activation, T(shape.slope)});
    default: return body(ActivationOf<T, -1>{shape.activation, T(shape.slope)});
  }
}

constexpr double operations_per_element = 4;  // for the work of a task (parallel_for)

// Vectors that are read together where lanes are pixels.
constexpr int together = 4;

// Calls body(place) for each vector of channels of each pixel of a block, in the order in memory: rows read side by
// side take twice as long.
template <class S, class Body>
INLINE void for_each_vector_of_channels(const Blocks& blocks, int64_t block, const Body& body) {
  constexpr int L = lanes<S>;
  const int64_t C = blocks.shape.C;
  int64_t offset = blocks.first(block, 0);
  for (int64_t pixel = blocks.width(block); pixel > 0; --pixel, offset += C) {
    int64_t c = 0;
    for (; c + L <= C; c += L) body(Place{offset + c, c, L});
    if (c < C) body(Place{offset + c, c, int(C - c)});
  }
}

// Writes function(state, place) to every element. function.start(place) makes the state of all vectors of its channels.
template <class S, class Function>
void map(const BatchNormShape& shape, S* to, const Function& function) {
  constexpr int L = lanes<S>;
  const Blocks blocks(shape);
  const int64_t channels = shape.channels_last ? 1 : shape.C, tasks = blocks.count * channels;
  parallel_for(tasks, operations_per_element * shape.elements() / double(tasks), [&](int64_t task) {
    const int64_t block = task / channels, channel = task % channels;
    if (shape.channels_last) {
      for_each_vector_of_channels<S>(blocks, block, [&](const Place& place) __attribute__((always_inline)) {
        store_at(to, function(function.start(place), place), place);
      });
      return;
    }
    int64_t begin = blocks.first(block, channel);
    const auto state = function.start(Place{begin, channel, L});
    for (int64_t row = blocks.rows(block); row > 0; --row, begin += shape.C * shape.P)
      for (int64_t i = begin, end = begin + blocks.width(block); i < end; i += L) {
        const Place place{i, channel, int(std::min<int64_t>(L, end - i))};
        store_at(to, function(state, place), place);
      }
  });
}

// Two sums over a block of a channel.
struct Sums {
  int64_t channel;
  double first, second;
};

// Sums over all blocks of all channels. Terms has these members:
// - start(place, first) makes the State of the sums of a vector, of which `first` is the first element in the block.
// - add(state, place, first, second) adds the terms at a place to two vectors.
// - merge(block) makes a function (sums, total) that adds those of a block to a Total, block after block.
// - finish(channel, total) gets the total.
template <class S, class Terms>
class Reduction {
 public:
  using T = Acc<S>;

  Reduction(const BatchNormShape& shape, const Terms& terms) : shape_(shape), blocks_(shape), terms_(terms) {}

  void run() const {
    if (shape_.channels_last) {
      over_channels();
    } else {
      const double work = operations_per_element * shape_.N * shape_.P;
      parallel_for(shape_.C, work, [&](int64_t channel) { over_pixels(channel); });
    }
  }

 private:
  static constexpr int L = lanes<S>;

  // Lanes are channels.
  void over_channels() const {
    const int64_t C = shape_.C;
    Scratch scratch;
    T* sums = scratch.take<T>(blocks_.count * 2 * C);  // [block][2][C]
    parallel_for(blocks_.count, operations_per_element * blocks_.per_block * C,
                 [&](int64_t block) { sum_block(block, sums + block * 2 * C); });
    const int64_t width = std::max<int64_t>(L, 64 / sizeof(T));  // channels of a task: at least a cache line
    parallel_for(ceil_div(C, width), operations_per_element * blocks_.count * width, [&](int64_t task) {
      const int64_t begin = task * width, end = std::min(C, begin + width);
      typename Terms::Total totals[16] = {};
      for (int64_t block = 0; block < blocks_.count; ++block) {
        const T* from = sums + block * 2 * C;
        const auto merge = terms_.merge(block);
        for (int64_t c = begin; c < end; ++c) merge(Sums{c, from[c], from[C + c]}, totals[c - begin]);
      }
      for (int64_t c = begin; c < end; ++c) terms_.finish(c, totals[c - begin]);
    });
  }

  // Sums a block, to[2][C].
  void sum_block(int64_t block, T* to) const {
    const int64_t C = shape_.C, begin = blocks_.first(block, 0);
    std::fill_n(to, 2 * C, T(0));
    for_each_vector_of_channels<S>(blocks_, block, [&](const Place& place) __attribute__((always_inline)) {
      const Place sum{place.channel, 0, place.count};
      Vector<S> first = load_at(to, sum), second = load_at(to + C, sum);
      terms_.add(terms_.start(place, begin + place.channel), place, first, second);
      store_at(to, first, sum);
      store_at(to + C, second, sum);
    });
  }

  // Lanes are pixels.
  void over_pixels(int64_t channel) const {
    typename Terms::Total total{};
    for (int64_t block = 0; block < blocks_.count; ++block) {
      int64_t begin = blocks_.first(block, channel);
      const int64_t width = blocks_.width(block);
      const auto state = terms_.start(Place{begin, channel, int(std::min<int64_t>(L, width))}, begin);
      Vector<S> first[together] = {}, second[together] = {};
      for (int64_t row = blocks_.rows(block); row > 0; --row, begin += shape_.C * shape_.P) {
        int64_t p = 0;
        for (; p + together * L <= width; p += together * L)
          unroll<together>([&](auto v) __attribute__((always_inline)) {
            terms_.add(state, Place{begin + p + v * L, channel, L}, first[v], second[v]);
          });
        for (; p + L <= width; p += L) terms_.add(state, Place{begin + p, channel, L}, first[0], second[0]);
        if (p < width) terms_.add(state, Place{begin + p, channel, int(width - p)}, first[0], second[0]);
      }
      terms_.merge(block)(Sums{channel, sum_of(first), sum_of(second)}, total);
    }
    terms_.finish(channel, total);
  }

  static double sum_of(const Vector<S> (&vectors)[together]) {
    Vector<S> lanes_of_sum = vectors[0];
    unroll<together - 1>([&](auto v) __attribute__((always_inline)) { lanes_of_sum = lanes_of_sum + vectors[v + 1]; });
    double sum = 0;
    for (int lane = 0; lane < L; ++lane) sum += lanes_of_sum[lane];
    return sum;
  }

  const BatchNormShape& shape_;
  const Blocks blocks_;
  const Terms& terms_;
};

// The first `count` lanes; the others are zero.
template <class S>
INLINE Vector<S> first_lanes(Vector<S> v, int count) {
  if (count == lanes<S>) return v;
  Acc<S> kept[lanes<S>] = {};
  store(kept, v, count);
  return load(kept);
}

// Mean and variance. Merges the blocks of each channel in order (Chan, Golub and LeVeque, "Algorithms
// for computing the sample variance", 1983, equation 2.1). Within a block, differences are taken from its first pixel.
template <class S>
struct Statistics {
  using State = Vector<S>;
  struct Total {
    double mean, squares;
  };

  const Blocks& blocks;
  const S* x;
  double *mean, *variance;

  INLINE State start(const Place& place, int64_t first) const {
    return blocks.shape.channels_last ? load_at(x, {first, 0, place.count}) : broadcast(Acc<S>(x[first]));
  }
  INLINE void add(State pivot, const Place& place, Vector<S>& sum, Vector<S>& square) const {
    const Vector<S> difference = first_lanes<S>(load_at(x, place) - pivot, place.count);
    sum = sum + difference;
    square = fma(difference, difference, square);
  }
  auto merge(int64_t block) const {
    const double pixels = blocks.pixels(block), before = blocks.pixels_before(block);
    const double inverse = 1 / pixels, share = pixels / (before + pixels);
    const S* first = x + blocks.first(block, 0);
    const int64_t step = blocks.shape.channels_last ? 1 : blocks.shape.P;
    return [=](const Sums& sums, Total& total) {
      const double difference = sums.first * inverse;  // of the block's mean from its first pixel
      const double delta = Acc<S>(first[sums.channel * step]) + difference - total.mean;
      total.mean += delta * share;
      total.squares += std::max(0.0, sums.second - sums.first * difference) + delta * delta * (before * share);
    };
  }
  void finish(int64_t channel, const Total& total) const {
    mean[channel] = total.mean;
    variance[channel] = total.squares / (double(blocks.shape.N) * double(blocks.shape.P));
  }
};

template <class S>
void statistics(const BatchNormShape& shape, const S* x, double* mean, double* variance) {
  const Blocks blocks(shape);
  Reduction<S, Statistics<S>>(shape, {blocks, x, mean, variance}).run();
}

// activation((x - mean) * scale + shift + residual)
template <class S, class Activation>
struct Normalized {
  using State = typename Normalization<S>::State;

  const Normalization<S>& norm;
  Activation activation;
  const S *x, *residual;

  INLINE State start(const Place& place) const { return norm.at(place); }
  INLINE Vector<S> operator()(const State& channel, const Place& place) const {
    const Vector<S> y = channel(load_at(x, place) - channel.mean);
    return activation(residual ? y + load_at(residual, place) : y);
  }
};

template <class S>
void apply(const BatchNormShape& shape, const S* x, const BatchNormChannels& channels, const S* residual, S* z) {
  Scratch scratch;
  const Normalization<S> norm(shape, channels, scratch);
  with_activation<S>(shape, [&](auto activation) {
    map(shape, z, Normalized<S, decltype(activation)>{norm, activation, x, residual});
  });
}

// The sums of g and of g * (x - mean). If z is given, g is stored.
template <class S, class Activation>
struct GradientSums {
  using State = typename Normalization<S>::State;
  struct Total {
    double sum, product;
  };

  const Normalization<S>& norm;
  Activation activation;
  const S *dz, *x, *z;
  S* g;
  Acc<S>*sum, *product;

  INLINE State start(const Place& place, int64_t) const { return norm.at(place); }
  INLINE void add(const State& channel, const Place& place, Vector<S>& sums, Vector<S>& products) const {
    const Vector<S> difference = first_lanes<S>(load_at(x, place) - channel.mean, place.count);
    const Vector<S> at = z ? load_at(z, place) : channel(difference);
    const Vector<S> value = first_lanes<S>(activation.gradient(load_at(dz, place), at, z != nullptr), place.count);
    if (z) store_at(g, value, place);
    sums = sums + value;
    products = fma(value, difference, products);
  }
  auto merge(int64_t) const {
    return [](const Sums& sums, Total& total) {
      total.sum += sums.first;
      total.product += sums.second;
    };
  }
  void finish(int64_t channel, const Total& total) const {
    sum[channel] = Acc<S>(total.sum);
    product[channel] = Acc<S>(total.product);
  }
};

template <class S>
void gradient_sums(const BatchNormShape& shape, const S* dz, const S* x, const S* z, const BatchNormChannels& channels,
                   S* g, Acc<S>* sum, Acc<S>* product) {
  Scratch scratch;
  const Normalization<S> norm(shape, channels, scratch);
  with_activation<S>(shape, [&](auto activation) {
    using Terms = GradientSums<S, decltype(activation)>;
    Reduction<S, Terms>(shape, Terms{norm, activation, dz, x, z, g, sum, product}).run();
  });
}

// scale * g + factor * (x - mean) + offset, or scale * g, where an infinite x has no effect
template <class S, class Activation>
struct InputGradient {
  struct State {
    typename Normalization<S>::State norm;
    Vector<S> factor, offset;
  };

  const Normalization<S>& norm;
  const PerChannel<S>*factors, *offsets;  // or null
  Activation activation;
  const S *dz, *x;

  INLINE State start(const Place& place) const {
    const Vector<S> zero{};
    return {norm.at(place), factors ? factors->at(place) : zero, offsets ? offsets->at(place) : zero};
  }
  INLINE Vector<S> operator()(const State& channel, const Place& place) const {
    const Vector<S> difference = load_at(x, place) - channel.norm.mean;
    const Vector<S> g = activation.gradient(load_at(dz, place), channel.norm(difference), false);
    if (!factors) return channel.norm.scale * g;
    return fma(channel.norm.scale, g, fma(channel.factor, difference, channel.offset));
  }
};

template <class S>
void grad_input(const BatchNormShape& shape, const S* dz, const S* x, const BatchNormChannels& channels,
                const void* factor, const void* offset, S* dx) {
  Scratch scratch;
  const Normalization<S> norm(shape, channels, scratch);
  const bool any = factor != nullptr;
  const PerChannel<S> factors(shape, any ? factor : channels.mean, scratch);
  const PerChannel<S> offsets(shape, any ? offset : channels.mean, scratch);
  with_activation<S>(shape, [&](auto activation) {
    map(shape, dx,
        InputGradient<S, decltype(activation)>{norm, any ? &factors : nullptr, any ? &offsets : nullptr, activation, dz,
                                               x});
  });
}

// Calls body(S()) for the dtype.
template <class Body>
void with_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::float64: return body(double());
    case Dtype::float32: return body(float());
    case Dtype::bfloat16: return body(BFloat16());
    case Dtype::float16: return body(Half());
  }
}

}  // namespace batch_norm

extern constinit const BatchNormKernels batch_norm_kernels = {
    .available = available,
    .statistics =
        [](const BatchNormShape& shape, const void* x, double* mean, double* variance) {
          batch_norm::with_dtype(shape.dtype, [&](auto t) {
            using S = decltype(t);
            batch_norm::statistics<S>(shape, static_cast<const S*>(x), mean, variance);
          });
        },
    .apply =
        [](const BatchNormShape& shape, const void* x, const BatchNormChannels& channels, const void* residual,
           void* z) {
          batch_norm::with_dtype(shape.dtype, [&](auto t) {
            using S = decltype(t);
            batch_norm::apply<S>(shape, static_cast<const S*>(x), channels, static_cast<const S*>(residual),
                                 static_cast<S*>(z));
          });
        },
    .gradient_sums =
        [](const BatchNormShape& shape, const void* dz, const void* x, const void* z, const BatchNormChannels& channels,
           void* g, void* sum, void* product) {
          batch_norm::with_dtype(shape.dtype, [&](auto t) {
            using S = decltype(t);
            using T = Acc<S>;
            batch_norm::gradient_sums<S>(shape, static_cast<const S*>(dz), static_cast<const S*>(x),
                                         static_cast<const S*>(z), channels, static_cast<S*>(g), static_cast<T*>(sum),
                                         static_cast<T*>(product));
          });
        },
    .grad_input =
        [](const BatchNormShape& shape, const void* dz, const void* x, const BatchNormChannels& channels,
           const void* factor, const void* offset, void* dx) {
          batch_norm::with_dtype(shape.dtype, [&](auto t) {
            using S = decltype(t);
            batch_norm::grad_input<S>(shape, static_cast<const S*>(dz), static_cast<const S*>(x), channels, factor,
                                      offset, static_cast<S*>(dx));
          });
        },
};
