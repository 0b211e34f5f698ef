// winograd: the guard of grad_weight against outliers. See winograd_grad_weight.h, and winograd_guard.h for the other
// operators.
//
// The rounding errors of a tile are relative to max|x| of its patch times max|y| of its outputs, in all nine taps; but
// a tap may read little of that: an outlier in x meets zeros of y, or lies where only other taps reach. grad_weight is
// therefore computed directly (gemm) if, for one of the taps of a group, the sum over all tiles of max|x| max|y|
// exceeds max_spread times the sum over all output pixels of |x||y|, each the largest over the channels of the group;
// or if an element is not below max_magnitude. Else |error| <= c eps max_spread times the latter sum.
//
// While tiles are transformed, only the largest |x| and |y| of each line of tiles are noted. Afterwards, the sum over
// output pixels is estimated from below by some of the tiles.

namespace winograd {

// A correlation that reads y in patches of 4x4, with zeros beyond its last row and column.
inline Correlation gradient_correlation(const Conv& conv) {
  const auto axis = [](int64_t in) {
    return Axis{.in = in, .kernel = 1, .out = round_up(in, tile_size), .stride = 1, .dilation = 1, .pad = 0};
  };
  Correlation gradient;
  gradient.x = conv.y;
  gradient.rows = axis(conv.rows.out);
  gradient.cols = axis(conv.cols.out);
  return gradient;
}

template <class S>
class WeightGuard {
  using T = Acc<S>;

 public:
  WeightGuard(const Conv& conv, Scratch& scratch)
      : conv_(conv),
        tile_rows_(ceil_div(conv.rows.out, tile_size)),
        tile_cols_(ceil_div(conv.cols.out, tile_size)),
        count_(std::min<int64_t>(max_notes, conv.groups * lines())),
        largest_x_(scratch.take<Magnitude<T>>(count_)),
        largest_y_(scratch.take<Magnitude<T>>(count_)) {
    std::fill_n(largest_x_, count_, 0);
    std::fill_n(largest_y_, count_, 0);
  }

  // Note the largest element of the patch of a line of tiles.
  void note_x(int64_t group, const Tiles& line, const LinePatch<T>& patch) const {
    note(largest_x_[index(group, line)], patch.largest);
  }
  void note_y(int64_t group, const Tiles& line, const LinePatch<T>& patch) const {
    note(largest_y_[index(group, line)], patch.largest);
  }

  // Whether a noted element is out of range.
  bool out_of_range() const { return __atomic_load_n(&out_of_range_, __ATOMIC_RELAXED); }

  // Whether the errors of all taps are within the bound.
  bool is_within_bound(const S* x, const S* y) const {
    if (out_of_range()) return false;
    for (int64_t group = 0; group < conv_.groups; ++group) {
      const double products = largest_products(group), limit = products / max_spread;
      if (!(products < max_products)) return false;
      const auto enough = [&](int64_t step) {
        return exceeds(group, x, y, std::clamp<int64_t>(lines() * tile_cols_ / min_tiles, 1, step), limit);
      };
      if (std::none_of(std::begin(steps), std::end(steps), enough)) return false;
    }
    return true;
  }

 private:
  // Lines share the notes of a larger number of lines, which are then upper bounds.
  static constexpr int64_t max_notes = 1 << 16;
  static constexpr double max_products = 0x1p100;  // sums of transformed tiles stay below 2^111
  // One of 29 tiles is looked at, then one of 5, or more of few tiles.
  static constexpr int64_t steps[] = {29, 5}, min_tiles = 8;
  static constexpr int64_t max_tasks = 256;  // of a sum

  int64_t lines() const { return conv_.N * tile_rows_; }
  int64_t index(int64_t group, const Tiles& line) const {
    return (group * lines() + line.n * tile_rows_ + line.row) % count_;
  }

  // largest = max(largest, value), with threads that do so concurrently.
  void note(Magnitude<T>& largest, Magnitude<T> value) const {
    if (!is_in_range<T>(value)) __atomic_store_n(&out_of_range_, 1, __ATOMIC_RELAXED);
    Magnitude<T> now = __atomic_load_n(&largest, __ATOMIC_RELAXED);
    while (now < value &&
           !__atomic_compare_exchange_n(&largest, &now, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }

  // The sum over all tiles of max|x| max|y|, or more.
  double largest_products(int64_t group) const {
    double sum = 0;
    for (int64_t line = 0; line < lines(); ++line) {
      const int64_t i = (group * lines() + line) % count_;
      sum += double(tile_cols_) * error_scale<T>(largest_x_[i]) * error_scale<T>(largest_y_[i]);
    }
    return sum;
  }

  // Whether, for each tap, the sum over the output pixels of one of every `step` tiles of |x||y| is at least `limit`.
  bool exceeds(int64_t group, const S* x, const S* y, int64_t step, double limit) const {
    using Sums = double[9];
    constexpr int64_t prime = 7919;  // picks another one of each `step` tiles, to meet all columns
    const int64_t tiles = lines() * tile_cols_, picked = ceil_div(tiles, step), tasks = std::min(picked, max_tasks);
    Scratch scratch;
    Sums* sums = scratch.take<Sums>(tasks);
    std::memset(sums, 0, tasks * sizeof(Sums));
    parallel_for(tasks, double(picked) / tasks * 36 * (conv_.C_per_group() + conv_.K_per_group()), [&](int64_t task) {
      for (int64_t i = split_begin(picked, tasks, task); i < split_begin(picked, tasks, task + 1); ++i)
        add_products(group, std::min(i * step + i * prime % step, tiles - 1), x, y, sums[task]);
    });
    for (int64_t task = 1; task < tasks; ++task)
      for (int tap = 0; tap < 9; ++tap) sums[0][tap] += sums[task][tap];
    return std::all_of(sums[0], sums[0] + 9, [&](double sum) { return sum >= limit; });
  }

  // Adds |x||y| of the output pixels of a tile to the sum of each tap.
  void add_products(int64_t group, int64_t tile, const S* x, const S* y, double (&sums)[9]) const {
    const int64_t n = tile / tile_cols_ / tile_rows_, C = conv_.C_per_group(), K = conv_.K_per_group();
    const int64_t p = tile / tile_cols_ % tile_rows_ * tile_size, q = tile % tile_cols_ * tile_size;
    Magnitude<T> inputs[6][6], gradients[4][4];
    pixel_magnitudes(forward_correlation(conv_), n, p, q, group * C, C, x, inputs);
    pixel_magnitudes(gradient_correlation(conv_), n, p, q, group * K, K, y, gradients);
    for (int r = 0; r < 3; ++r)
      for (int s = 0; s < 3; ++s)
        for (int i = 0; i < 4; ++i)
          for (int j = 0; j < 4; ++j)
            sums[r * 3 + s] += double(value_of<T>(inputs[i + r][j + s])) * value_of<T>(gradients[i][j]);
  }

  const Conv& conv_;
  const int64_t tile_rows_, tile_cols_, count_;
  Magnitude<T>* const largest_x_;  // of each line of each group
  Magnitude<T>* const largest_y_;
  mutable uint8_t out_of_range_ = 0;
};

}  // namespace winograd
