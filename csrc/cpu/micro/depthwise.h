// The inner loops of grouped: products of pixels and taps, lane by lane, for depthwise convolutions and groups of few
// channels. A pixel is one vector of elements of type S. Each pixel is loaded once for all taps of a kernel row, and
// for two rows of outputs.

// Widths of the register tiles, in neighbouring outputs of a row.
using TileWidths =
    std::conditional_t<(registers > 16), std::integer_sequence<int, 7, 4, 2, 1>, std::integer_sequence<int, 4, 2, 1>>;
constexpr int max_pixels = registers > 16 ? 7 : 4;  // the widest of them
// The accumulators of two rows, the three taps of a kernel row for both of them, and a pixel.
static_assert(2 * max_pixels + 2 * 3 + 1 <= registers);

// The first output that reads pixel j under one of its `taps` taps. Outputs are `step` pixels apart.
constexpr int first_reader(int taps, int step, int j) { return j < taps ? 0 : (j - taps) / step + 1; }

// The arguments of depthwise_tile: a tile of one or two rows of outputs. Strides and offsets are in elements. "Row of
// taps" counts input rows in steps of the dilation, from the first row of taps of the first row of outputs.
template <class S>
struct DepthwiseTile {
  const S* x;             // the pixel under the first tap of the first output
  int64_t pixel, row;     // strides of x: to the next pixel, and to the next row of taps
  int64_t left, right;    // pixels [left, right) of a row, counted from x, are in the input; the others are zero
  int64_t top, bottom;    // rows of taps [top, bottom) are in the input
  int64_t kernel_rows;    // rows of taps of one output
  int64_t row_step;       // rows of taps from the first row of outputs to the second
  const int64_t* offset;  // [runs] offsets in x of the runs of taps in a row of taps
  const int32_t* lanes;   // [run][lane] the lane of x that each lane reads, in permuted tiles; else null
  int64_t runs;
  const Acc<S>* w;  // [row of taps][run][tap][lane]
  S* y;
  int64_t y_pixel, y_row;  // strides of y
  int count;               // lanes to store
  bool stream;             // use non-temporal stores
  const FusedEpilogue<Acc<S>>* fused;
  int64_t step;   // pixels of x from one output to the next; depthwise_tile reads it only if its own `step` is 0
  int64_t ahead;  // rows of x to prefetch, below those of this tile
};

// Prefetches the rows of x that the tile below this one will read.
template <class S, int MR, int taps, int step>
INLINE void prefetch_rows(const DepthwiseTile<S>& tile) {
  constexpr int pixels = step > 0 ? std::min((MR - 1) * step + taps, MR * step) : MR;
  for (int64_t i = 0; i < tile.ahead; ++i) {
    const S* at = tile.x + (tile.kernel_rows + tile.row_step + i) * tile.row;
    fold<pixels>([&]<int... j>(Indices<j...>) __attribute__((always_inline)) {
      (__builtin_prefetch(at + j * tile.pixel, 0, 2), ...);  // 2: into L2
    });
  }
}

// Applies the fused epilogue to the accumulators of a tile, and stores them.
template <class S, int rows, int MR>
INLINE void store_outputs(const DepthwiseTile<S>& tile, Vector<S> (&acc)[rows][MR]) {
  using V = Vector<S>;
  // Calls body(address in y, accumulator) for every output of the tile.
  const auto each = [&](const auto& body) __attribute__((always_inline)) {
    fold<rows * MR>([&]<int... i>(Indices<i...>) __attribute__((always_inline)) {
      (body(tile.y + i / MR * tile.y_row + i % MR * tile.y_pixel, acc[i / MR][i % MR]), ...);
    });
  };
  if (tile.fused) each([&](S*, V& value) __attribute__((always_inline)) { value = (*tile.fused)(value, 0); });
  if (tile.stream) {
    each([&](S* y, V value) __attribute__((always_inline)) { stream(y, value); });
  } else if (tile.count == lanes<S>) {
    each([&](S* y, V value) __attribute__((always_inline)) { store(y, value); });
  } else {
    each([&](S* y, V value) __attribute__((always_inline)) { store(y, value, tile.count); });
  }
}

// Computes `rows` (1 or 2) rows of MR outputs. A run has `taps` neighbouring taps; outputs are `step` pixels of x
// apart. The generic version has taps = 1 and step = 0: it takes the step from the tile, and requires that all pixels
// exist. In `permuted` tiles, each run reads other lanes of the same pixels.
template <class S, int rows, int MR, int taps, int step, bool permuted>
void depthwise_tile(const DepthwiseTile<S>& tile) {
  using V = Vector<S>;
  constexpr int L = lanes<S>, pixels = step > 0 ? (MR - 1) * step + taps : MR;
  V acc[rows][MR] = {};
  prefetch_rows<S, MR, taps, step>(tile);
  [[maybe_unused]] static const std::array<S, L> zeros{};
  [[maybe_unused]] const S* zero = zeros.data();
  const int64_t distance = step > 0 ? tile.pixel : tile.step * tile.pixel;
  // Accumulates row of taps i into the first and/or the second row of outputs. `inside`: all pixels exist.
  const auto row = [&](int64_t i, auto first, auto second, auto inside) __attribute__((always_inline)) {
    const Acc<S>* w = tile.w + i * tile.runs * taps * L;
    const Acc<S>* w_second = w - tile.row_step * tile.runs * taps * L;
    for (int64_t run = 0; run < tile.runs; ++run, w += taps * L, w_second += taps * L) {
      const S* at = tile.x + i * tile.row + tile.offset[run];
      V tap[rows][taps];
      fold<taps>([&]<int... t>(Indices<t...>) __attribute__((always_inline)) {
        ((first ? void(tap[0][t] = load(w + t * L)) : void(),
          second ? void(tap[rows - 1][t] = load(w_second + t * L)) : void()),
         ...);
      });
      unroll<pixels>([&](auto j) __attribute__((always_inline)) {
        // In a tile of several outputs, only pixels at its two ends may lie outside the input: see RowCuts.
        constexpr bool exists = inside || (MR > 1 && j >= taps - 1 && j <= pixels - taps);
        V pixel = exists ? load(at) : load(j >= tile.left && j < tile.right ? at : zero);
        if constexpr (permuted) pixel = permute(pixel, tile.lanes + run * L);
        at += distance;
        // Outputs [begin, end) read this pixel, output m under tap j - m * by. The last comes first: taps ascend.
        constexpr int by = step > 0 ? step : 1, begin = first_reader(taps, by, j), end = std::min(MR, j / by + 1);
        fold<end - begin>([&]<int... i>(Indices<i...>) __attribute__((always_inline)) {
          if constexpr (first && second) {
            ((acc[0][end - 1 - i] = fma(pixel, tap[0][j - (end - 1 - i) * by], acc[0][end - 1 - i]),
              acc[rows - 1][end - 1 - i] =
                  fma(pixel, tap[rows - 1][j - (end - 1 - i) * by], acc[rows - 1][end - 1 - i])),
             ...);
          } else {
            constexpr int row = first ? 0 : rows - 1;
            ((acc[row][end - 1 - i] = fma(pixel, tap[row][j - (end - 1 - i) * by], acc[row][end - 1 - i])), ...);
          }
        });
      });
    }
  };
  // The rows of taps that the first row of outputs reads alone, that both read, and that the second reads alone.
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
  if (step == 0 || (tile.left <= 0 && tile.right >= pixels)) {
    all_rows(std::true_type());
  } else if constexpr (step > 0) {
    all_rows(std::false_type());
  }
  store_outputs<S>(tile, acc);
}

template <class S>
using DepthwiseTileFunction = void (*)(const DepthwiseTile<S>&);

// depthwise_tile of one width, for one row of outputs and for two.
template <class S>
struct TileFunctions {
  int width;
  DepthwiseTileFunction<S> one, two;
};

template <class S, int taps, int step, bool permuted, int... m>
const TileFunctions<S>* tile_table(std::integer_sequence<int, m...>) {
  static constexpr TileFunctions<S> table[] = {
      {m, depthwise_tile<S, 1, m, taps, step, permuted>, depthwise_tile<S, 2, m, taps, step, permuted>}...};
  return table;
}

// The tile functions of all widths, from the widest down to a single output.
template <class S, int taps, int step, bool permuted = false>
const TileFunctions<S>* tile_table() {
  return tile_table<S, taps, step, permuted>(TileWidths());
}

// The taps of a run, and the step from one output to the next, that a function is compiled for: depthwise_tile for
// tile_shapes and permuted_shapes, accumulate_taps for gradient_shapes.
struct TapShape {
  int64_t taps, step;
};
constexpr TapShape tile_shapes[] = {{1, 1}, {2, 1}, {3, 1}, {4, 1}, {5, 1}, {6, 1},
                                    {7, 1}, {2, 2}, {3, 2}, {5, 2}, {7, 2}};
constexpr TapShape permuted_shapes[] = {{1, 1}, {2, 1}, {3, 1}, {3, 2}};
constexpr TapShape gradient_shapes[] = {{1, 1}, {2, 1}, {3, 1}, {5, 1}, {7, 1}, {2, 2}, {3, 2}, {5, 2}, {7, 2}};

// Whether functions are compiled for these shapes. Not for double: they would take as long to compile again.
template <class S>
constexpr bool has_shapes = !std::is_same_v<S, double>;

template <class S, size_t n>
bool has_shape(const TapShape (&shapes)[n], int64_t taps, int64_t step) {
  for (const TapShape& shape : shapes)
    if (has_shapes<S> && shape.taps == taps && shape.step == step) return true;
  return false;
}

// The tile functions of one of `shapes`, for runs of `taps` taps and this step; null if it is none of them.
template <class S, const auto& shapes, bool permuted>
const TileFunctions<S>* find_tile_functions(int64_t taps, int64_t step) {
  const TileFunctions<S>* found = nullptr;
  if constexpr (has_shapes<S>)
    unroll<std::size(shapes)>([&](auto i) __attribute__((always_inline)) {
      constexpr TapShape shape = shapes[i];
      if (taps == shape.taps && step == shape.step) found = tile_table<S, shape.taps, shape.step, permuted>();
    });
  return found;
}

template <class S>
const TileFunctions<S>* tile_functions(int64_t taps, int64_t step) {
  return find_tile_functions<S, tile_shapes, false>(taps, step);
}

// For permuted tiles, whose pixels are accumulators.
template <class T>
const TileFunctions<T>* permuted_tile_functions(int64_t taps, int64_t step) {
  return find_tile_functions<T, permuted_shapes, true>(taps, step);
}

// How a row of outputs is cut into tiles.
template <class S>
struct RowCuts {
  struct Cut {
    int64_t x, y;  // offsets of its first output in x and in y, from the first output of the row
    int64_t left, right;
    DepthwiseTileFunction<S> one, two;
  };
  Cut* cuts;
  int64_t count = 0;

  // Cuts a row of `cols` outputs. `tile` describes a tile at its start.
  RowCuts(const TileFunctions<S>* functions, int64_t taps, const DepthwiseTile<S>& tile, int64_t cols, Scratch& scratch)
      : cuts(scratch.take<Cut>(cols)) {
    for (int64_t q = 0; q < cols;) {
      const TileFunctions<S>* choice = functions;
      // Outputs whose windows lie entirely outside the input are computed one by one.
      const auto fits = [&] {
        return choice->width == 1 || (choice->width <= cols - q && q * tile.step + taps > tile.left &&
                                      (q + choice->width - 1) * tile.step < tile.right);
      };
      while (!fits()) ++choice;
      cuts[count++] = {.x = q * tile.step * tile.pixel,
                       .y = q * tile.y_pixel,
                       .left = tile.left - q * tile.step,
                       .right = tile.right - q * tile.step,
                       .one = choice->one,
                       .two = choice->two};
      q += choice->width;
    }
  }
};

// Computes one tile of 1 or 2 rows. x and y belong to the first output of its row.
template <class S>
INLINE void run_cut(const typename RowCuts<S>::Cut& cut, int rows, DepthwiseTile<S>& tile, const S* x, S* y) {
  tile.x = x + cut.x;
  tile.y = y + cut.y;
  tile.left = cut.left;
  tile.right = cut.right;
  (rows == 2 ? cut.two : cut.one)(tile);
}

// The arguments of accumulate_taps and accumulate_any_taps: the gradient of some rows of taps, from rows of output
// gradients.
template <class S>
struct TapGradients {
  const S* x;              // the pixel under the first of these taps, for the first output gradient
  int64_t pixel, row;      // strides of x: to the next pixel, and to the next row of taps
  int64_t left, right;     // pixels [left, right) of a row, counted from x, are in the input; the others are zero
  int64_t x_row;           // stride of x from one row of output gradients to the next
  const S* y;              // the output gradients
  int64_t y_pixel, y_row;  // strides of y
  int64_t rows, cols;      // of output gradients
  Acc<S>* accumulators;    // [row of taps, `pitch` apart][tap][lane]
  int64_t pitch;
};

// Accumulates the gradient of `taps` neighbouring taps in each of `tap_rows` rows of taps.
template <class S, int tap_rows, int taps, int step>
void accumulate_taps(const TapGradients<S>& product) {
  using V = Vector<S>;
  constexpr int L = lanes<S>;
  V acc[tap_rows][taps] = {};  // added to `accumulators` at the end: two short reductions instead of a long one
  // Accumulates the products of MQ neighbouring output gradients, starting at column q. `inside`: all pixels exist.
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
        fold<end - begin>([&]<int... i>(Indices<i...>) __attribute__((always_inline)) {
          ((acc[r][j - (end - 1 - i) * step] = fma(pixel, gradient[end - 1 - i], acc[r][j - (end - 1 - i) * step])),
           ...);
        });
      });
    });
  };
  const std::integral_constant<int, max_pixels> many;
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
      Acc<S>* at = product.accumulators + r * product.pitch + t * L;
      store(at, load(at) + acc[r][t]);
    });
  });
}

template <class S>
using AccumulateTaps = void (*)(const TapGradients<S>&);

// Maximum rows of taps per call: their accumulators share the registers with max_pixels gradients and one pixel.
constexpr int max_tap_rows(int taps) { return std::max(1, std::min(3, (registers - max_pixels - 1) / taps)); }

template <class S, int taps, int step, int... r>
const AccumulateTaps<S>* tap_gradient_table(std::integer_sequence<int, r...>) {
  static constexpr AccumulateTaps<S> table[] = {accumulate_taps<S, r + 1, taps, step>...};
  return table;
}

template <class S, int taps, int step>
const AccumulateTaps<S>* tap_gradient_table() {
  return tap_gradient_table<S, taps, step>(std::make_integer_sequence<int, max_tap_rows(taps)>());
}

// accumulate_taps for `taps` neighbouring taps and this step, indexed by the rows of taps minus one; null if it is not
// compiled.
template <class S>
const AccumulateTaps<S>* tap_gradient_functions(int64_t taps, int64_t step) {
  const AccumulateTaps<S>* found = nullptr;
  if constexpr (has_shapes<S>)
    unroll<std::size(gradient_shapes)>([&](auto i) __attribute__((always_inline)) {
      constexpr TapShape shape = gradient_shapes[i];
      if (taps == shape.taps && step == shape.step) found = tap_gradient_table<S, shape.taps, shape.step>();
    });
  return found;
}

// The generic version, for any list of taps: accumulators[t] += x[q * step + offset[t]] * y[q], one vector each.
// Outputs are `step` pixels of x apart. All pixels exist.
template <class T, int taps>
void accumulate_any_taps(const TapGradients<T>& product, int64_t step, const int64_t* offset) {
  using V = Vector<T>;
  constexpr int L = lanes<T>;
  V acc[taps] = {};
  const int64_t rows = product.rows, cols = product.cols;
  const int64_t x_step = step * product.pixel, y_step = product.y_pixel;
  const T *x = product.x, *y = product.y;
  for (int64_t p = 0; p < rows; ++p, x += product.x_row, y += product.y_row) {
    const T *at = x, *from = y;
    for (int64_t q = 0; q < cols; ++q, at += x_step, from += y_step) {
      const V value = load(from);
      unroll<taps>([&](auto t) __attribute__((always_inline)) { acc[t] = fma(load(at + offset[t]), value, acc[t]); });
    }
  }
  T* accumulators = product.accumulators;
  unroll<taps>(
      [&](auto t) __attribute__((always_inline)) { store(accumulators + t * L, load(accumulators + t * L) + acc[t]); });
}

// Minimum number of taps of accumulate_any_taps. Where accumulate_taps is compiled, it handles single taps.
template <class T>
constexpr int least_taps = has_shapes<T> ? 2 : 1;

template <class T, int... t>
constexpr auto any_taps_table(std::integer_sequence<int, t...>) {
  return std::array{accumulate_any_taps<T, least_taps<T> + t>...};
}

// Maximum number of taps of accumulate_any_taps, whose accumulators stay in registers.
constexpr int max_taps = registers > 16 ? 14 : 7;
static_assert(max_taps + 2 <= registers);  // with an output gradient and a pixel

// accumulate_any_taps, indexed by the number of taps minus least_taps.
template <class T>
constexpr auto any_tap_gradient_functions =
    any_taps_table<T>(std::make_integer_sequence<int, max_taps - least_taps<T> + 1>());
