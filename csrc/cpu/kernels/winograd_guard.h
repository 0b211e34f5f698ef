// winograd: the guard against outliers. See winograd.h.
//
// The rounding errors of a Winograd tile are relative to the largest element of its 6x6 patch, not to the elements in
// the window of an output. A tile is therefore an outlier tile, and is computed directly (gemm), if
//
//   - the largest |element| of its patch exceeds max_spread times that of the window of one of its outputs, or
//   - an element is not below max_magnitude: not finite, or so large that a transformed tile could overflow, or
//   - all elements are so small that transforms underflow.
//
// Both depend on the tile alone, and all input channels of the group. Then, for every output of the other tiles,
// |error| <= c eps max_spread max|x| sum|w|, over the output's own window and filter (docs/numbers.md derives c). A
// correlation with weights out of this range is computed directly as a whole.
//
// While patches are transformed, tiles are suspected by cheap tests that no outlier tile passes: first the largest
// element of a line of tiles is compared to those at the centers of its tiles, then, if need be, each tile is tested
// for the channels of the patch. Suspected tiles are tested for all channels afterwards, if the patch did not have
// them.

namespace winograd {

constexpr double max_spread = 16;
constexpr double max_magnitude = 0x1p50;  // of x and of w: products of transforms stay below 2^120

// Transformed elements below the smallest normal number become zero. Beside elements of at least this magnitude, that
// is no more than rounding.
template <class T>
constexpr T min_magnitude = std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon();

template <class T>
bool is_in_range(Magnitude<T> bits) {
  return bits < magnitude(T(max_magnitude));
}

// What the rounding errors of transforms are relative to, for the largest magnitude.
template <class T>
T error_scale(Magnitude<T> largest) {
  return largest == 0 ? T(0) : std::max(value_of<T>(largest), min_magnitude<T>);
}

// Whether max_spread times one of `count` |elements| is at least `largest`.
template <class T>
INLINE bool reaches(const T* from, int64_t count, typename Simd<T>::V largest) {
  using V = typename Simd<T>::V;
  constexpr int L = Simd<T>::lanes;
  const auto any = [&](V v) __attribute__((always_inline)) {
    return any_at_least(broadcast(T(max_spread)) * V(magnitudes<T>(v)), largest);
  };
  int64_t i = 0;
  for (; i + L <= count; i += L)
    if (any(load(from + i))) return true;
  return i < count && any(load(from + i, count - i));
}

// Whether a tile of rows x cols outputs is an outlier tile, for the magnitudes of its pixels, [6][6] with rows `pitch`
// apart.
template <class T>
bool is_outlier(const Magnitude<T>* pixels, int64_t pitch, int64_t rows, int64_t cols) {
  Magnitude<T> largest = 0, smallest = std::numeric_limits<Magnitude<T>>::max();
  Magnitude<T> across[6][4];  // the largest of three pixels of a row
  for (int64_t i = 0; i < 6; ++i) {
    const Magnitude<T>* row = pixels + i * pitch;
    for (int64_t j = 0; j < 6; ++j) largest = std::max(largest, row[j]);
    for (int64_t j = 0; j < 4; ++j) across[i][j] = std::max({row[j], row[j + 1], row[j + 2]});
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j)
      smallest = std::min(smallest, std::max({across[i][j], across[i + 1][j], across[i + 2][j]}));
  return !is_in_range<T>(largest) || !(T(max_spread) * value_of<T>(smallest) >= error_scale<T>(largest));
}

// The first and the last row (or column) of two of a patch, one of which is in the window of each of a tile's `outputs`
// outputs along the axis.
struct Centers {
  int64_t begin, end;

  explicit Centers(int64_t outputs) : begin(outputs > 2 ? 2 : 1), end(outputs > 3 ? 4 : begin + 1) {}
};

// The suspected tiles of one correlation, and whether its weights are in range. Threads write to it concurrently.
template <class S>
class Guard {
  using T = Acc<S>;

 public:
  // `whole_patches`: the patches that it is shown have all channels of a group.
  Guard(const Correlation& conv, bool whole_patches, Scratch& scratch)
      : conv_(conv),
        tile_rows_(ceil_div(conv.rows.out, tile_size)),
        tile_cols_(ceil_div(conv.cols.out, tile_size)),
        count_(std::min(max_marks, conv.groups * tiles_per_group())),
        is_exact_(whole_patches && count_ == conv.groups * tiles_per_group()),
        suspects_(scratch.take<uint8_t>(count_)) {
    std::memset(suspects_, 0, count_);
  }

  // Looks at the patch of a line of tiles.
  void check(int64_t group, const Tiles& line, const LinePatch<T>& patch) const {
    if (!every_center_reaches(line, patch)) check_tiles(group, line, patch);
  }

  // Notes the largest magnitude of some weights.
  void check_weights(Magnitude<T> largest) const {
    if (!is_in_range<T>(largest) || error_scale<T>(largest) != value_of<T>(largest)) mark(weights_out_of_range_);
  }

  int64_t tiles_per_group() const { return conv_.N * tile_rows_ * tile_cols_; }

  // The outputs of a tile of a group.
  Block outputs_of(int64_t tile) const {
    const int64_t n = tile / tile_cols_ / tile_rows_;
    const int64_t p = tile / tile_cols_ % tile_rows_ * tile_size, q = tile % tile_cols_ * tile_size;
    return {n, n + 1, p, std::min(p + tile_size, conv_.rows.out), q, std::min(q + tile_size, conv_.cols.out)};
  }

  bool weights_out_of_range() const { return weights_out_of_range_; }
  bool suspects_any() const { return std::find(suspects_, suspects_ + count_, 1) != suspects_ + count_; }
  bool suspects(int64_t group, int64_t tile) const {
    return __atomic_load_n(&suspects_[(group * tiles_per_group() + tile) % count_], __ATOMIC_RELAXED);
  }

  // Whether all suspects are outlier tiles.
  bool is_exact() const { return is_exact_; }

  // Whether all of some tiles, which have been looked at, are known to be outlier tiles.
  bool are_outliers(int64_t group, const Tiles& tiles) const {
    for (int64_t i = 0; i < tiles.images * tiles.rows; ++i) {
      const Tiles line = tiles.only_row(i);
      for (int64_t col = 0; col < line.cols; ++col)
        if (!suspects(group, index(line, col))) return false;
    }
    return is_exact_;
  }

 private:
  // Tiles share the marks of a larger number of tiles: one that is suspected for another one costs only time.
  static constexpr int64_t max_marks = 1 << 20;

  static void mark(uint8_t& mark) { __atomic_store_n(&mark, 1, __ATOMIC_RELAXED); }

  int64_t index(const Tiles& line, int64_t col) const {
    return (line.n * tile_rows_ + line.row) * tile_cols_ + line.col + col;
  }

  // The outputs of a tile of a line, along both axes.
  int64_t outputs_down(const Tiles& line) const { return std::min(tile_size, conv_.rows.out - line.row * tile_size); }
  int64_t outputs_across(const Tiles& line, int64_t col) const {
    return std::min(tile_size, conv_.cols.out - (line.col + col) * tile_size);
  }

  // Whether the elements are in range, and max_spread times the |element| at each center is at least the largest one.
  bool every_center_reaches(const Tiles& line, const LinePatch<T>& patch) const {
    if (!is_in_range<T>(patch.largest)) return false;
    const auto largest = broadcast(error_scale<T>(patch.largest));
    const Centers rows(outputs_down(line));
    for (int64_t col = 0; col < line.cols; ++col) {
      const Centers columns(outputs_across(line, col));
      for (int64_t i = rows.begin; i < rows.end; ++i)
        for (int64_t j = columns.begin; j < columns.end; ++j)
          if (!reaches(patch.pixel(i, col * tile_size + j), patch.channels, largest)) return false;
    }
    return true;
  }

  // Suspects the outlier tiles of a line, as far as the channels of the patch show them.
  void check_tiles(int64_t group, const Tiles& line, const LinePatch<T>& patch) const {
    Scratch scratch;
    Magnitude<T>* pixels = scratch.take<Magnitude<T>>(6 * patch.cols);
    for (int64_t i = 0; i < 6 * patch.cols; ++i) pixels[i] = largest_magnitude(patch.pixel(0, i), patch.channels);
    for (int64_t col = 0; col < line.cols; ++col)
      if (is_outlier<T>(pixels + col * tile_size, patch.cols, outputs_down(line), outputs_across(line, col)))
        mark(suspects_[(group * tiles_per_group() + index(line, col)) % count_]);
  }

  const Correlation& conv_;
  const int64_t tile_rows_, tile_cols_;
  const int64_t count_;
  const bool is_exact_;
  uint8_t* const suspects_;
  mutable uint8_t weights_out_of_range_ = 0;
};

// The largest magnitude of each pixel of a patch of size x size, over channels [c, c + channels) of the whole tensor.
// The patch is that of the block of a whole tile, even if some of its outputs do not exist.
template <class S, int size>
void pixel_magnitudes(const Correlation& conv, int64_t n, int64_t p, int64_t q, int64_t c, int64_t channels, const S* x,
                      Magnitude<Acc<S>> (&pixels)[size][size]) {
  constexpr int64_t at_once = 64;  // channels
  const Block tile{n, n + 1, p, p + tile_size, q, q + tile_size};
  const Patch patch(conv, tile, at_once);
  Acc<S> copy[size * size * at_once];
  std::memset(pixels, 0, sizeof pixels);
  for (int64_t end = c + channels; c < end; c += at_once) {
    const int64_t count = std::min(at_once, end - c);
    read_patch(conv, tile, patch, c, count, x, copy);
    for (int64_t i = 0; i < size; ++i)
      for (int64_t j = 0; j < size; ++j)
        pixels[i][j] = std::max(pixels[i][j], largest_magnitude(copy + (i * size + j) * at_once, count));
  }
}

// Whether `tile`, a block of up to 4x4 outputs, is an outlier tile: the exact test.
template <class S>
bool is_outlier(const Correlation& conv, const Block& tile, int64_t group, const S* x) {
  const int64_t C = conv.C_per_group();
  Magnitude<Acc<S>> pixels[6][6];
  pixel_magnitudes(conv, tile.n, tile.p, tile.q, group * C, C, x, pixels);
  return is_outlier<Acc<S>>(pixels[0], 6, tile.p_end - tile.p, tile.q_end - tile.q);
}

// Computes the outlier tiles of a correlation directly, over the results of winograd.
template <class S>
void correct_outliers(const Correlation& conv, const Guard<S>& guard, const S* x, const S* w, S* y,
                      const Epilogue& epilogue) {
  using T = Acc<S>;
  if (!guard.weights_out_of_range() && !guard.suspects_any()) return;
  const auto plan = gemm::plan<T, S>(conv);
  if (guard.weights_out_of_range()) return gemm::correlate(conv, plan, x, w, y, epilogue);
  constexpr int64_t at_once = 1 << 14;  // tiles, with weights packed once
  const int64_t tiles = guard.tiles_per_group();
  Scratch scratch;
  uint8_t* flags = scratch.take<uint8_t>(std::min(tiles, at_once));
  Block* blocks = scratch.take<Block>(std::min(tiles, at_once));
  for (int64_t group = 0; group < conv.groups; ++group)
    for (int64_t first = 0; first < tiles; first += at_once) {
      const int64_t count = std::min(at_once, tiles - first);
      parallel_for(count, 36.0 * conv.C_per_group(), [&](int64_t i) {
        flags[i] = guard.suspects(group, first + i) &&
                   (guard.is_exact() || is_outlier(conv, guard.outputs_of(first + i), group, x));
      });
      int64_t found = 0;
      for (int64_t i = 0; i < count; ++i)
        if (flags[i]) blocks[found++] = guard.outputs_of(first + i);
      if (found > 0) gemm::correlate_blocks(conv, plan, group, {blocks, size_t(found)}, x, w, y, epilogue);
    }
}

}  // namespace winograd
