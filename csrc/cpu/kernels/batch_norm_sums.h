// Batch normalization: a pass that sums over each channel. See batch_norm.h.

namespace batch_norm {

// Vectors that are read together where lanes are pixels.
constexpr int together = 4;

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

}  // namespace batch_norm
