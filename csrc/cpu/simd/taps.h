// The inner loops of slab: products of pixels and taps, lane by lane. A pixel is one vector, of numbers of type S. Each
// is loaded once for all the taps of a row, and for two rows of outputs.

// Numbers of neighbouring outputs that are made at a time.
using TileWidths =
    std::conditional_t<(registers > 16), std::integer_sequence<int, 7, 4, 2, 1>, std::integer_sequence<int, 4, 2, 1>>;
constexpr int most_pixels = registers > 16 ? 7 : 4;

// The first of the outputs, `step` pixels apart, that read pixel j under `taps` taps.
constexpr int first_reader(int taps, int step, int j) { return j < taps ? 0 : (j - taps) / step + 1; }

// A tile of one or two rows of outputs.
template <class S>
struct TapTile {
  const S* x;             // under the first tap of the first output
  int64_t pixel, row;     // steps in x: to the next pixel, and to the next row of taps
  int64_t left, right;    // the pixels of a row that exist, counted from x; the others are zero
  int64_t top, bottom;    // the rows of taps that exist, of the first row of outputs
  int64_t kernel_rows;    // of taps
  int64_t row_step;       // rows of taps from the first row of outputs to the second
  const int64_t* offset;  // in x, of the runs of taps that belong to one row of taps
  int64_t runs;
  const Sum<S>* w;  // [row of taps][run][tap][lane]
  S* y;
  int64_t y_pixel, y_row;  // steps in y
  int count;               // lanes to be stored
  bool stream;             // past the caches
  const Finish<Sum<S>>* finish;
  int64_t step;   // from one output to the next, in pixels of x, where `step` below is 0
  int64_t ahead;  // rows of x behind those of this tile that are fetched meanwhile
};

// Runs of `taps` neighbouring taps, and `step` pixels of x from one output to the next, are known when the function is
// compiled. Otherwise both are 1 and 0, and all pixels exist.
template <class S, int rows, int MR, int taps, int step>
void correlate_tile(const TapTile<S>& tile) {
  using T = Sum<S>;
  using V = Vector<S>;
  constexpr int L = lanes<S>, pixels = step > 0 ? (MR - 1) * step + taps : MR;
  V sum[rows][MR] = {};
  for (int64_t i = 0; i < tile.ahead; ++i) {
    const S* at = tile.x + (tile.kernel_rows + tile.row_step + i) * tile.row;
    fold<std::min(pixels, MR * std::max(1, step))>([&]<int... j>(Numbers<j...>) __attribute__((always_inline)) {
      (__builtin_prefetch(at + j * tile.pixel, 0, 2), ...);
    });
  }
  [[maybe_unused]] static const std::array<S, L> zeros{};
  [[maybe_unused]] const S* zero = zeros.data();
  const int64_t distance = step > 0 ? tile.pixel : tile.step * tile.pixel;
  const auto row = [&](int64_t i, auto first, auto second, auto inside) __attribute__((always_inline)) {
    const T* w = tile.w + i * tile.runs * taps * L;
    const T* w_second = w - tile.row_step * tile.runs * taps * L;
    for (int64_t run = 0; run < tile.runs; ++run, w += taps * L, w_second += taps * L) {
      const S* at = tile.x + i * tile.row + tile.offset[run];
      V tap[rows][taps];
      fold<taps>([&]<int... t>(Numbers<t...>) __attribute__((always_inline)) {
        ((first ? void(tap[0][t] = load(w + t * L)) : void(),
          second ? void(tap[rows - 1][t] = load(w_second + t * L)) : void()),
         ...);
      });
      unroll<pixels>([&](auto j) __attribute__((always_inline)) {
        // Of several windows, only the two ends may be missing: see RowCuts.
        constexpr bool exists = inside || (MR > 1 && j >= taps - 1 && j <= pixels - taps);
        const V pixel = exists ? load(at) : load(j >= tile.left && j < tile.right ? at : zero);
        at += distance;
        // Output m in [begin, end) reads it under tap j - m * by. The last one is first: taps are in order.
        constexpr int by = step > 0 ? step : 1, begin = first_reader(taps, by, j), end = std::min(MR, j / by + 1);
        fold<end - begin>([&]<int... i>(Numbers<i...>) __attribute__((always_inline)) {
          if constexpr (first && second) {
            ((sum[0][end - 1 - i] = fma(pixel, tap[0][j - (end - 1 - i) * by], sum[0][end - 1 - i]),
              sum[rows - 1][end - 1 - i] =
                  fma(pixel, tap[rows - 1][j - (end - 1 - i) * by], sum[rows - 1][end - 1 - i])),
             ...);
          } else {
            constexpr int row = first ? 0 : rows - 1;
            ((sum[row][end - 1 - i] = fma(pixel, tap[row][j - (end - 1 - i) * by], sum[row][end - 1 - i])), ...);
          }
        });
      });
    }
  };
  const auto all_rows = [&](auto inside) __attribute__((always_inline)) {
    const std::true_type yes;
    const std::false_type no;
    const int64_t R = tile.kernel_rows, s = rows > 1 ? tile.row_step : R;
    int64_t i = tile.top;
    for (const int64_t end = std::min(s, tile.bottom); i < end; ++i) row(i, yes, no, inside);
    if constexpr (rows > 1) {
      for (const int64_t end = std::min(R, tile.bottom); i < end; ++i) row(i, yes, yes, inside);
      for (const int64_t end = std::min(R + s, tile.bottom); i < end; ++i) row(i, no, yes, inside);
    }
  };
  if constexpr (step == 0) {
    all_rows(std::true_type());
  } else if (tile.left <= 0 && tile.right >= pixels) {
    all_rows(std::true_type());
  } else {
    all_rows(std::false_type());
  }
  const auto each = [&](const auto& body) __attribute__((always_inline)) {
    fold<rows * MR>([&]<int... i>(Numbers<i...>) __attribute__((always_inline)) {
      (body(tile.y + i / MR * tile.y_row + i % MR * tile.y_pixel, sum[i / MR][i % MR]), ...);
    });
  };
  if (tile.finish) each([&](S*, V& value) __attribute__((always_inline)) { value = (*tile.finish)(value, 0); });
  if (tile.stream) {
    each([&](S* y, V value) __attribute__((always_inline)) { stream(y, value); });
  } else if (tile.count == L) {
    each([&](S* y, V value) __attribute__((always_inline)) { store(y, value); });
  } else {
    each([&](S* y, V value) __attribute__((always_inline)) { store(y, value, tile.count); });
  }
}

template <class S>
using CorrelateTile = void (*)(const TapTile<S>&);

// correlate_tile for one row of outputs and for two.
template <class S>
struct TileFunctions {
  int width;
  CorrelateTile<S> one, two;
};

template <class S, int taps, int step, int... m>
const TileFunctions<S>* tile_table(std::integer_sequence<int, m...>) {
  static constexpr TileFunctions<S> table[] = {
      {m, correlate_tile<S, 1, m, taps, step>, correlate_tile<S, 2, m, taps, step>}...};
  return table;
}

// From the widest down to those of one output.
template <class S, int taps, int step>
const TileFunctions<S>* tile_table() {
  return tile_table<S, taps, step>(TileWidths());
}

// Runs of taps, and steps from one output to the next, that functions are compiled for.
struct TapShape {
  int taps, step;
};
constexpr TapShape tile_shapes[] = {{1, 1}, {2, 1}, {3, 1}, {4, 1}, {5, 1}, {7, 1}, {3, 2}, {5, 2}};
constexpr TapShape sum_shapes[] = {{1, 1}, {3, 1}, {5, 1}, {7, 1}, {3, 2}, {5, 2}};

template <class S>
constexpr bool has_shapes = !std::is_same_v<S, double>;  // which would take as long to compile again

template <class S, size_t n>
bool has_shape(const TapShape (&shapes)[n], int64_t taps, int64_t step) {
  for (const TapShape& shape : shapes)
    if (has_shapes<S> && shape.taps == taps && shape.step == step) return true;
  return false;
}

// Those for runs of `taps` taps, or null if there are none.
template <class S>
const TileFunctions<S>* tile_functions(int64_t taps, int64_t step) {
  const TileFunctions<S>* found = nullptr;
  if constexpr (has_shapes<S>)
    unroll<std::size(tile_shapes)>([&](auto i) __attribute__((always_inline)) {
      constexpr TapShape shape = tile_shapes[i];
      if (taps == shape.taps && step == shape.step) found = tile_table<S, shape.taps, shape.step>();
    });
  return found;
}

// How a row of outputs is cut into tiles.
template <class S>
struct RowCuts {
  struct Cut {
    int64_t x, y;  // steps of the first output, from that of the row
    int64_t left, right;
    CorrelateTile<S> one, two;
  };
  Cut* cuts;
  int64_t count = 0;

  // Of `cols` outputs. `tile` describes the first one.
  RowCuts(const TileFunctions<S>* functions, int64_t taps, const TapTile<S>& tile, int64_t cols, Scratch& scratch)
      : cuts(scratch.take<Cut>(cols)) {
    for (int64_t q = 0; q < cols;) {
      const TileFunctions<S>* choice = functions;
      // Windows that lie beside the input are made one by one.
      const auto fits = [&] {
        return choice->width == 1 || (choice->width <= cols - q && q * tile.step + taps > tile.left &&
                                      (q + choice->width - 1) * tile.step < tile.right);
      };
      while (!fits()) ++choice;
      cuts[count++] = {q * tile.step * tile.pixel, q * tile.y_pixel, tile.left - q * tile.step,
                       tile.right - q * tile.step, choice->one,      choice->two};
      q += choice->width;
    }
  }
};

// Makes one tile. x and y are those of the first output of its row.
template <class S>
INLINE void correlate_cut(const typename RowCuts<S>::Cut& cut, int rows, TapTile<S>& tile, const S* x, S* y) {
  tile.x = x + cut.x, tile.y = y + cut.y, tile.left = cut.left, tile.right = cut.right;
  (rows == 2 ? cut.two : cut.one)(tile);
}

// The gradient of taps, from rows of output gradients.
template <class S>
struct TapSums {
  const S* x;           // under the first of these taps, and the first gradient
  int64_t pixel, row;   // steps in x: to the next pixel, and to the next row of taps
  int64_t left, right;  // the pixels of a row that exist, counted from x; the others are zero
  int64_t x_row;        // step in x from one row of gradients to the next
  const S* y;
  int64_t y_pixel, y_row;  // steps in y
  int64_t rows, cols;      // of gradients
  Sum<S>* sums;            // [row of taps, `pitch` apart][tap][lane]
  int64_t pitch;
};

// Adds the products of `taps` neighbouring taps in each of `tap_rows` rows.
template <class S, int tap_rows, int taps, int step>
void sum_taps(const TapSums<S>& product) {
  using V = Vector<S>;
  constexpr int L = lanes<S>;
  V sum[tap_rows][taps] = {};  // added to the sums at the end, so that both stay short
  const auto add = [&](const S* x, const S* y, int64_t q, auto MQ, auto inside) __attribute__((always_inline)) {
    constexpr int pixels = (MQ - 1) * step + taps;
    V gradient[MQ];
    unroll<MQ>([&](auto m) __attribute__((always_inline)) { gradient[m] = load(y + m * product.y_pixel); });
    unroll<tap_rows>([&](auto r) __attribute__((always_inline)) {
      const S* at = x + r * product.row;
      unroll<pixels>([&](auto j) __attribute__((always_inline)) {
        const int64_t w = q * step + j;
        const V pixel = inside || (w >= product.left && w < product.right) ? load(at) : V{};
        at += product.pixel;
        constexpr int begin = first_reader(taps, step, j), end = std::min<int>(MQ, j / step + 1);
        fold<end - begin>([&]<int... i>(Numbers<i...>) __attribute__((always_inline)) {
          ((sum[r][j - (end - 1 - i) * step] = fma(pixel, gradient[end - 1 - i], sum[r][j - (end - 1 - i) * step])),
           ...);
        });
      });
    });
  };
  const std::integral_constant<int, most_pixels> many;
  const std::integral_constant<int, 1> one;
  for (int64_t p = 0; p < product.rows; ++p) {
    const S *x = product.x + p * product.x_row, *y = product.y + p * product.y_row;
    int64_t q = 0;
    const auto go = [&](auto count) __attribute__((always_inline)) {
      for (; q + count <= product.cols; q += count) {
        const S *at = x + q * step * product.pixel, *from = y + q * product.y_pixel;
        if (q * step >= product.left && (q + count - 1) * step + taps <= product.right) {
          add(at, from, q, count, std::true_type());
        } else {
          add(at, from, q, count, std::false_type());
        }
      }
    };
    go(many);
    go(one);
  }
  unroll<tap_rows>([&](auto r) __attribute__((always_inline)) {
    unroll<taps>([&](auto t) __attribute__((always_inline)) {
      Sum<S>* at = product.sums + r * product.pitch + t * L;
      store(at, load(at) + sum[r][t]);
    });
  });
}

template <class S>
using SumTaps = void (*)(const TapSums<S>&);

// At most so many rows of taps at a time.
constexpr int most_tap_rows(int taps) { return std::max(1, std::min(3, (registers - most_pixels - 1) / taps)); }

template <class S, int taps, int step, int... r>
const SumTaps<S>* sums_table(std::integer_sequence<int, r...>) {
  static constexpr SumTaps<S> table[] = {sum_taps<S, r + 1, taps, step>...};
  return table;
}

template <class S, int taps, int step>
const SumTaps<S>* sums_table() {
  return sums_table<S, taps, step>(std::make_integer_sequence<int, most_tap_rows(taps)>());
}

// sum_taps for `taps` neighbouring taps, by the number of their rows less one; null if there is none.
template <class S>
const SumTaps<S>* sum_functions(int64_t taps, int64_t step) {
  const SumTaps<S>* found = nullptr;
  if constexpr (has_shapes<S>)
    unroll<std::size(sum_shapes)>([&](auto i) __attribute__((always_inline)) {
      constexpr TapShape shape = sum_shapes[i];
      if (taps == shape.taps && step == shape.step) found = sums_table<S, shape.taps, shape.step>();
    });
  return found;
}

// The same for any taps: sums[t] += x[q * step + offset[t]] * y[q], over `length` pixels of each of `rows` rows.
template <class T, int taps>
void sum_any_taps(const T* x, int64_t x_row, int64_t step, const T* y, int64_t y_row, int64_t y_step, int64_t rows,
                  int64_t length, const int64_t* offset, T* sums) {
  using V = typename Simd<T>::V;
  constexpr int L = Simd<T>::lanes;
  V sum[taps] = {};
  for (int64_t p = 0; p < rows; ++p, x += x_row, y += y_row) {
    const T *at = x, *from = y;
    for (int64_t q = 0; q < length; ++q, at += step, from += y_step) {
      const V value = load(from);
      unroll<taps>([&](auto t) __attribute__((always_inline)) { sum[t] = fma(load(at + offset[t]), value, sum[t]); });
    }
  }
  unroll<taps>([&](auto t) __attribute__((always_inline)) { store(sums + t * L, load(sums + t * L) + sum[t]); });
}

// A single tap has a function above.
template <class T>
constexpr int least_taps = has_shapes<T> ? 2 : 1;

template <class T, int... t>
constexpr auto any_taps_table(std::integer_sequence<int, t...>) {
  return std::array{sum_any_taps<T, least_taps<T> + t>...};
}

constexpr int most_taps = registers > 16 ? 14 : 7;

// From those of the fewest taps on.
template <class T>
constexpr auto sum_any_functions = any_taps_table<T>(std::make_integer_sequence<int, most_taps - least_taps<T> + 1>());
