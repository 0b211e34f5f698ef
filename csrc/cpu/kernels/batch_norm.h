// Batch normalization with an activation (../../batch_norm.h). Every function is a pass over memory: lanes are channels
// where these are contiguous, else pixels. Sums are taken over blocks that depend on the shape alone, in the
// accumulator type, and those of the blocks are added in order, in float64.

#include "dtypes.h"

#include "../pack/fused_epilogue.h"

#include "batch_norm_blocks.h"

#include "batch_norm_sums.h"

#include "batch_norm_activations.h"

namespace batch_norm {

// A number of each channel.
template <class S>
class PerChannel {
 public:
  using T = Acc<S>;

  // Copies them, so that whole vectors can be read. Without values, they are 0.
  PerChannel(const BatchNormShape& shape, const void* values, Scratch& scratch)
      : values_(scratch.take<T>(shape.C)), lanes_are_channels_(shape.channels_last) {
    if (values) {
      std::memcpy(values_, values, shape.C * sizeof(T));
    } else {
      std::fill_n(values_, shape.C, T(0));
    }
  }

  INLINE Vector<S> at(const Place& place) const {
    return lanes_are_channels_ ? load(values_ + place.channel) : broadcast(values_[place.channel]);
  }

 private:
  T* values_;
  bool lanes_are_channels_;
};

// Mean, scale and shift of each channel.
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

// Mean and variance: the blocks of each channel are merged in order (Chan, Golub and LeVeque, "Algorithms for computing
// the sample variance", 1983, equation 2.1). Within a block, differences are taken from its first pixel, so that a
// large mean does not cancel.
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

// The sums of g and of g * (x - mean). g is found from z, if that is given, and stored, if there is a place for it.
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
    if (g) store_at(g, value, place);
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

// scale * g + factor * (x - mean) + offset. Where mean and variance are not functions of x, it is scale * g alone,
// which an infinite x leaves finite.
template <class S, class Activation>
struct InputGradient {
  struct State {
    typename Normalization<S>::State norm;
    Vector<S> factor, offset;
  };

  const Normalization<S>& norm;
  const PerChannel<S>&factors, &offsets;
  bool through_statistics;
  Activation activation;
  const S *dz, *x;

  INLINE State start(const Place& place) const { return {norm.at(place), factors.at(place), offsets.at(place)}; }
  INLINE Vector<S> operator()(const State& channel, const Place& place) const {
    const Vector<S> difference = load_at(x, place) - channel.norm.mean;
    const Vector<S> g = activation.gradient(load_at(dz, place), channel.norm(difference), false);
    if (!through_statistics) return channel.norm.scale * g;
    return fma(channel.norm.scale, g, fma(channel.factor, difference, channel.offset));
  }
};

template <class S>
void grad_input(const BatchNormShape& shape, const S* dz, const S* x, const BatchNormChannels& channels,
                const void* factor, const void* offset, S* dx) {
  Scratch scratch;
  const Normalization<S> norm(shape, channels, scratch);
  const PerChannel<S> factors(shape, factor, scratch), offsets(shape, offset, scratch);
  with_activation<S>(shape, [&](auto activation) {
    map(shape, dx,
        InputGradient<S, decltype(activation)>{norm, factors, offsets, factor != nullptr, activation, dz, x});
  });
}

// The sums of a * b over each channel of each image: over parts of its pixels that depend on the shape alone, then over
// the parts, in order.
template <class S>
void channel_products(const BatchNormShape& shape, const S* a, const S* b, S* sums) {
  constexpr int L = lanes<S>;
  constexpr int64_t part_elements = 1 << 16, max_bytes = 8 << 20;
  using T = Acc<S>;
  const int64_t C = shape.C, P = shape.P;
  if (!shape.channels_last) {
    parallel_for(shape.N * C, operations_per_element * P, [&](int64_t channel) {
      Vector<S> sum{};
      for (int64_t p = channel * P, end = p + P; p < end; p += L) {
        const Place place{p, 0, int(std::min<int64_t>(L, end - p))};
        sum = fma(load_at(a, place), load_at(b, place), sum);
      }
      double total = 0;
      for (int lane = 0; lane < L; ++lane) total += sum[lane];
      sums[channel] = S(T(total));
    });
    return;
  }
  const int64_t parts = std::clamp<int64_t>(P * C / part_elements, 1, std::min<int64_t>(P, 64));
  const int64_t images = std::max<int64_t>(1, max_bytes / (parts * C * int64_t(sizeof(T))));  // at a time
  if (shape.N > images) {
    BatchNormShape some = shape;
    for (int64_t n = 0; n < shape.N; n += images) {
      some.N = std::min(images, shape.N - n);
      channel_products(some, a + n * P * C, b + n * P * C, sums + n * C);
    }
    return;
  }
  Scratch scratch;
  T* of_parts = scratch.take<T>(shape.N * parts * C);  // [image][part][channel]
  parallel_for(shape.N * parts, operations_per_element * P * C / double(parts), [&](int64_t task) {
    const int64_t image = task / parts, part = task % parts;
    T* to = of_parts + task * C;
    std::fill_n(to, C, T(0));
    for (int64_t p = split_begin(P, parts, part); p < split_begin(P, parts, part + 1); ++p)
      for (int64_t c = 0; c < C; c += L) {
        const int count = int(std::min<int64_t>(L, C - c));
        const Place place{(image * P + p) * C + c, c, count}, sum{c, c, count};
        store_at(to, fma(load_at(a, place), load_at(b, place), load_at(to, sum)), sum);
      }
  });
  for (int64_t image = 0; image < shape.N; ++image)
    for (int64_t c = 0; c < C; ++c) {
      T total = 0;
      for (int64_t part = 0; part < parts; ++part) total += of_parts[(image * parts + part) * C + c];
      sums[image * C + c] = S(total);
    }
}

}  // namespace batch_norm

extern constinit const BatchNormKernels batch_norm_table = {
    .available = available,
    .statistics =
        [](const BatchNormShape& shape, const void* x, double* mean, double* variance) {
          AllTypes::with(shape.dtype, [&](auto t) {
            using S = decltype(t);
            batch_norm::statistics<S>(shape, static_cast<const S*>(x), mean, variance);
          });
        },
    .apply =
        [](const BatchNormShape& shape, const void* x, const BatchNormChannels& channels, const void* residual,
           void* z) {
          AllTypes::with(shape.dtype, [&](auto t) {
            using S = decltype(t);
            batch_norm::apply<S>(shape, static_cast<const S*>(x), channels, static_cast<const S*>(residual),
                                 static_cast<S*>(z));
          });
        },
    .gradient_sums =
        [](const BatchNormShape& shape, const void* dz, const void* x, const void* z, const BatchNormChannels& channels,
           void* g, void* sum, void* product) {
          AllTypes::with(shape.dtype, [&](auto t) {
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
          AllTypes::with(shape.dtype, [&](auto t) {
            using S = decltype(t);
            batch_norm::grad_input<S>(shape, static_cast<const S*>(dz), static_cast<const S*>(x), channels, factor,
                                      offset, static_cast<S*>(dx));
          });
        },
    .channel_products =
        [](const BatchNormShape& shape, const void* a, const void* b, void* sums) {
          AllTypes::with(shape.dtype, [&](auto t) {
            using S = decltype(t);
            batch_norm::channel_products<S>(shape, static_cast<const S*>(a), static_cast<const S*>(b),
                                            static_cast<S*>(sums));
          });
        },
};
