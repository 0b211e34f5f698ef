// slab: depthwise convolutions and groups of few channels. See docs/kernels.md.
//
// Lanes are the output channels of as many groups as fill a vector. A slab is a patch whose pixels are single vectors:
// for each input channel of a group one slab, in which every lane holds that channel of the lane's own group. Taps and
// input channels are then one list of offsets, and all lanes work, however few channels a group has.

namespace slab {

// How groups share a vector.
struct Lanes {
  int64_t c, k;     // channels per group
  int64_t groups;   // per vector
  int64_t in, out;  // channels per vector
  int64_t vectors;  // for all groups

  Lanes(const Conv& conv, int64_t L) : c(conv.C_per_group()), k(conv.K_per_group()) {
    groups = std::clamp<int64_t>(L / std::max<int64_t>(1, std::max(c, k)), 0, conv.groups);
    in = groups * c, out = groups * k;
    vectors = groups > 0 ? (conv.groups - 1) / groups + 1 : 0;
  }
};

// Cuts of the outputs: blocks of rows whose slabs fit into a part of L2.
struct Plan {
  static constexpr int64_t slab_bytes = 192 << 10;
  static constexpr int64_t taps_bytes = 8 << 20;  // of all vectors

  int64_t rows, cols, row_blocks, col_blocks;
  bool possible;
};

template <class S>
Plan plan(const Conv& conv) {
  constexpr int L = lanes<S>;
  const Lanes share(conv, L);
  Plan plan{};
  if (share.groups == 0 || share.c == 0) return plan;
  const auto bytes = [&](int64_t rows, int64_t cols) {
    const Patch patch(conv, {0, 1, 0, rows, 0, cols}, L);
    return double(patch.rows.size) * patch.cols.size * L * sizeof(Sum<S>) * share.c;
  };
  plan.rows = std::max<int64_t>(1, conv.rows.out), plan.cols = std::max<int64_t>(1, conv.cols.out);
  while (plan.rows > 1 && bytes(plan.rows, plan.cols) > Plan::slab_bytes) plan.rows = (plan.rows + 1) / 2;
  while (plan.cols > 1 && bytes(plan.rows, plan.cols) > Plan::slab_bytes) plan.cols = (plan.cols + 1) / 2;
  plan.row_blocks = (conv.rows.out + plan.rows - 1) / plan.rows,
  plan.col_blocks = (conv.cols.out + plan.cols - 1) / plan.cols;
  plan.possible = bytes(plan.rows, plan.cols) <= 8.0 * Plan::slab_bytes &&
                  (double(conv.rows.kernel) * conv.cols.kernel * share.c + 1) * share.vectors * L * sizeof(Sum<S>) <=
                      Plan::taps_bytes;
  return plan;
}

// The slabs of one vector's input channels, one behind the other.
template <class S>
struct Slabs {
  using T = Sum<S>;
  static constexpr int L = lanes<S>;

  const Correlation& conv;
  const Block& block;
  const Lanes& share;
  Patch patch;
  T* data;
  int64_t filled = 0;  // rows

  Slabs(const Correlation& conv, const Block& block, const Lanes& share, Scratch& scratch)
      : conv(conv), block(block), share(share), patch(conv, block, L) {
    data = scratch.take<T>(patch.image_pitch() * share.c);
  }

  // Fills the rows up to `end` with vector `v`.
  void read(int64_t end, int64_t v, const S* x) {
    if (filled >= end) return;
    const int64_t first = v * share.in, count = std::min(share.in, conv.C - first), size = patch.image_pitch();
    // Read into the last slab, and spread from there, the last one last.
    T* plain = data + (share.c - 1) * size;
    read_rows(conv, block.n, patch, filled, end, first, count, x, plain);
    if (share.c > 1 || share.k > 1) {
      alignas(64) int32_t index[L][L] = {};
      for (int64_t i = 0; i < share.out; ++i)
        for (int64_t c = 0; c < share.c; ++c) index[c][i] = i / share.k * share.c + c;
      for (int64_t i = filled * patch.row_pitch(); i < end * patch.row_pitch(); i += L) {
        const Vector<S> pixel = load(plain + i);
        for (int64_t c = 0; c < share.c; ++c) store(data + c * size + i, permute(pixel, index[c]));
      }
    }
    filled = end;
  }
};

// The taps of vector `v`: [r][c][s][lane]
template <class S>
void read_taps(const Correlation& conv, const Lanes& share, int64_t v, const S* w, Sum<S>* to) {
  constexpr int L = lanes<S>;
  std::fill_n(to, conv.rows.kernel * conv.cols.kernel * share.c * L, Sum<S>(0));
  for (int64_t lane = 0; lane < std::min(share.out, conv.K - v * share.out); ++lane) {
    const int64_t k = v * share.out + lane;
    const S* from = w + k / share.k * conv.w_group + k % share.k * conv.w.n;
    Sum<S>* tap = to + lane;
    for (int64_t r = 0; r < conv.rows.kernel; ++r)
      for (int64_t c = 0; c < share.c; ++c)
        for (int64_t s = 0; s < conv.cols.kernel; ++s, tap += L)
          *tap = Sum<S>(from[r * conv.w.h + s * conv.w.w + c * conv.w.c]);
  }
}

constexpr int most_pixels = 8;

// MR neighbouring outputs of a row: out[m * out_pitch + lane] is the sum over runs of `taps` neighbouring taps.
template <class T>
struct Row {
  const T* x;             // under the first tap of the first output
  int64_t pitch;          // from one pixel of x to the next
  int64_t begin, end;     // the pixels from x on that exist; the others are zero
  const int64_t* offset;  // of the runs
  int64_t runs;
  const T* w;
  T* out;
  int64_t out_pitch;
  int count;  // of lanes to be stored
  bool stream;
  const Finish<T>* finish;
  int64_t step;  // from one output to the next, in pixels of x
};

// `taps` and `step` are known when the function is compiled: each vector of x is loaded once for all taps of a run.
// Otherwise taps is 1, step is 0, and all pixels exist.
template <class T, int MR, int taps, int step>
void correlate_row(const Row<T>& row) {
  using V = typename Simd<T>::V;
  constexpr int L = Simd<T>::lanes, pixels = (MR - 1) * step + taps;
  V sum[MR] = {};
  const T* w = row.w;
  const int64_t pitch = row.pitch;
  const auto run = [&](const T* at, auto inside) __attribute__((always_inline)) {
    V tap[taps];
    unroll<taps>([&](auto t) __attribute__((always_inline)) { tap[t] = load(w + t * L); });
    unroll<pixels>([&](auto j) __attribute__((always_inline)) {
      const V pixel = inside || (j >= row.begin && j < row.end) ? load(at) : V{};
      at += pitch;
      unroll<taps>([&](auto t) __attribute__((always_inline)) {
        constexpr int from = j - t;
        if constexpr (from >= 0 && from % step == 0 && from / step < MR)
          sum[from / step] = fma(pixel, tap[t], sum[from / step]);
      });
    });
  };
  if constexpr (step == 0) {
    for (int64_t i = 0; i < row.runs; ++i, w += L) {
      const V tap = load(w);
      const T* at = row.x + row.offset[i];
      unroll<MR>([&](auto m)
                     __attribute__((always_inline)) { sum[m] = fma(load(at + m * row.step * pitch), tap, sum[m]); });
    }
  } else if (row.begin <= 0 && row.end >= pixels) {
    for (int64_t i = 0; i < row.runs; ++i, w += taps * L) run(row.x + row.offset[i], std::true_type());
  } else {
    for (int64_t i = 0; i < row.runs; ++i, w += taps * L) run(row.x + row.offset[i], std::false_type());
  }
  unroll<MR>([&](auto m) __attribute__((always_inline)) {
    const V value = row.finish ? (*row.finish)(sum[m], 0) : sum[m];
    if (row.stream) {
      stream(row.out + m * row.out_pitch, value);
    } else if (row.count == L) {
      store(row.out + m * row.out_pitch, value);
    } else {
      store(row.out + m * row.out_pitch, value, row.count);
    }
  });
}

template <class T>
using CorrelateRow = void (*)(const Row<T>&);

template <class T, int taps, int step, int... m>
const CorrelateRow<T>* row_table(std::integer_sequence<int, m...>) {
  static constexpr CorrelateRow<T> table[] = {correlate_row<T, m + 1, taps, step>...};
  return table;
}

constexpr auto row_sizes = std::make_integer_sequence<int, most_pixels>();

// The functions for runs of `taps` taps, by the number of outputs less one; null if there are none.
template <class T>
const CorrelateRow<T>* row_functions(int64_t taps, int64_t step) {
  if (taps == 1 && step == 1) return row_table<T, 1, 1>(row_sizes);
  if (taps == 2 && step == 1) return row_table<T, 2, 1>(row_sizes);
  if (taps == 3 && step == 1) return row_table<T, 3, 1>(row_sizes);
  if (taps == 4 && step == 1) return row_table<T, 4, 1>(row_sizes);
  if (taps == 5 && step == 1) return row_table<T, 5, 1>(row_sizes);
  if (taps == 7 && step == 1) return row_table<T, 7, 1>(row_sizes);
  if (taps == 3 && step == 2) return row_table<T, 3, 2>(row_sizes);
  if (taps == 5 && step == 2) return row_table<T, 5, 2>(row_sizes);
  return nullptr;
}

template <class S>
void correlate(const Correlation& conv, const S* x, const S* w, S* y, const Epilogue& epilogue) {
  using T = Sum<S>;
  constexpr int L = lanes<S>;
  const Lanes share(conv, L);
  const Plan plan = slab::plan<S>(conv);
  const int64_t blocks = conv.N * plan.row_blocks * plan.col_blocks,
                taps = conv.rows.kernel * conv.cols.kernel * share.c;
  Scratch scratch;
  T* packed = scratch.take<T>(share.vectors * taps * L);
  T* bias = epilogue.bias ? scratch.take<T>(share.vectors * L) : nullptr;
  for (int64_t v = 0; v < share.vectors; ++v) {
    read_taps(conv, share, v, w, packed + v * taps * L);
    for (int64_t lane = 0; bias && lane < std::min(share.out, conv.K - v * share.out); ++lane)
      bias[v * L + lane] = T(static_cast<const S*>(epilogue.bias)[(v * share.out + lane) * epilogue.bias_stride]);
  }

  const bool direct = std::is_same_v<S, T> && conv.y.c == 1;
  const bool joined = conv.cols.kernel == 1 || conv.cols.dilation == 1;
  const auto* functions =
      joined ? row_functions<T>(conv.cols.kernel, conv.cols.kernel == 1 ? 1 : conv.cols.stride) : nullptr;
  const bool single = !functions;  // taps that are no runs
  if (single) functions = row_table<T, 1, 0>(row_sizes);

  if (direct && !single && share.c == 1 && share.k == 1 && conv.x.c == 1 && conv.C % L == 0 &&
      (conv.cols.kernel > 1 || conv.cols.stride == 1)) {
    const bool stream = streams(conv, y);
    // Depthwise, channels last: x is its own slab. Units are a few rows of all channels.
    const int64_t rows = std::clamp<int64_t>(conv.rows.out / std::max<int64_t>(1, 64 / conv.N), 1, 8),
                  row_blocks = (conv.rows.out - 1) / rows + 1;
    parallel_for(conv.N * row_blocks, double(rows) * conv.cols.out * taps * conv.C, [&](int64_t unit) {
      const FlushSubnormals flush;
      Scratch scratch;
      int64_t* offset = scratch.take<int64_t>(conv.rows.kernel);
      for (int64_t r = 0; r < conv.rows.kernel; ++r) offset[r] = r * conv.rows.dilation * conv.x.h;
      const int64_t n = unit / row_blocks, begin = unit % row_blocks * rows,
                    end = std::min(begin + rows, conv.rows.out);
      const int64_t tiles = (conv.cols.out - 1) / most_pixels + 1;
      Row<T> row{};
      row.pitch = conv.x.w, row.out_pitch = conv.y.w, row.count = L;
      row.stream = stream;
      for (int64_t p = begin; p < end; ++p) {
        const int64_t h = conv.rows.position(p, 0), d = conv.rows.dilation;
        const int64_t r_begin = h >= 0 ? 0 : std::min((-h - 1) / d + 1, conv.rows.kernel);
        const int64_t r_end =
            std::clamp<int64_t>(h >= conv.rows.in ? 0 : (conv.rows.in - 1 - h) / d + 1, r_begin, conv.rows.kernel);
        row.offset = offset + r_begin, row.runs = r_end - r_begin;
        for (int64_t v = 0; v < share.vectors; ++v) {
          const Finish<T> finish{bias ? bias + v * L : nullptr, epilogue.activation, T(epilogue.slope)};
          row.finish = finish.does_nothing() ? nullptr : &finish;
          row.w = packed + (v * taps + r_begin * conv.cols.kernel) * L;
          for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t q = conv.cols.out * tile / tiles, MR = conv.cols.out * (tile + 1) / tiles - q,
                          w0 = conv.cols.position(q, 0);
            row.x = reinterpret_cast<const T*>(x) + n * conv.x.n + h * conv.x.h + w0 * conv.x.w + v * L;
            row.begin = -w0, row.end = conv.cols.in - w0;
            row.out = reinterpret_cast<T*>(y) + n * conv.y.n + p * conv.y.h + q * conv.y.w + v * L;
            functions[MR - 1](row);
          }
        }
      }
      if (stream) finish_streams();
    });
    return;
  }

  // Units: blocks x a few vectors, whose channels are neighbours in memory.
  int64_t per_unit = std::min<int64_t>(share.vectors, 8);
  while (per_unit > 1 && blocks * (share.vectors / per_unit) < 8 * thread_count()) per_unit = (per_unit + 1) / 2;
  const int64_t sets = (share.vectors - 1) / per_unit + 1;
  parallel_for(blocks * sets, double(plan.rows) * plan.cols * (taps + 4) * per_unit * L, [&](int64_t unit) {
    const int64_t set = unit % sets, b = unit / sets;
    const int64_t q0 = b % plan.col_blocks * plan.cols, p0 = b / plan.col_blocks % plan.row_blocks * plan.rows,
                  n = b / plan.col_blocks / plan.row_blocks;
    const Block block{
        n, n + 1, p0, std::min(p0 + plan.rows, conv.rows.out), q0, std::min(q0 + plan.cols, conv.cols.out)};
    const int64_t rows = block.p_end - block.p, cols = block.q_end - block.q;

    const FlushSubnormals flush;
    Scratch scratch;
    Slabs<S> slabs(conv, block, share, scratch);
    T* buffer = direct ? nullptr : scratch.take<T>(rows * cols * L);
    const int64_t row_step = slabs.patch.rows.step;
    const int64_t runs = single ? taps : conv.rows.kernel * share.c;
    int64_t* offset = scratch.take<int64_t>(runs);
    for (int64_t i = 0; i < runs; ++i) {
      const int64_t s = single ? i % conv.cols.kernel : 0, rc = single ? i / conv.cols.kernel : i;
      offset[i] = rc % share.c * slabs.patch.image_pitch() +
                  rc / share.c * conv.rows.dilation * slabs.patch.row_pitch() + s * conv.cols.dilation * L;
    }
    const int64_t reach = conv.rows.kernel > 1 ? (conv.rows.kernel - 1) * conv.rows.dilation : 0;
    Row<T> row{};
    row.pitch = L, row.step = slabs.patch.cols.step, row.offset = offset, row.runs = runs;
    for (int64_t v = set * per_unit; v < std::min((set + 1) * per_unit, share.vectors); ++v) {
      const int64_t k = v * share.out, count = std::min(share.out, conv.K - k);
      const Finish<T> finish{bias ? bias + v * L : nullptr, epilogue.activation, T(epilogue.slope)};
      S* target = y + n * conv.y.n + k * conv.y.c + block.p * conv.y.h + block.q * conv.y.w;
      T* out = direct ? reinterpret_cast<T*>(target) : buffer;
      const int64_t out_h = direct ? conv.y.h : cols * L, out_w = direct ? conv.y.w : L;
      const int64_t tiles = (cols - 1) / most_pixels + 1;
      slabs.filled = 0;
      row.w = packed + v * taps * L, row.out_pitch = out_w, row.count = direct ? count : L;
      row.finish = direct && !finish.does_nothing() ? &finish : nullptr;
      for (int64_t p = 0; p < rows; ++p) {
        slabs.read(std::min(p * row_step + reach + 1, slabs.patch.rows.size), v, x);
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t q = cols * tile / tiles, MR = cols * (tile + 1) / tiles - q;
          row.x = slabs.data + p * row_step * slabs.patch.row_pitch() + q * row.step * L;
          row.begin = 0, row.end = slabs.patch.cols.size;
          row.out = out + p * out_h + q * out_w;
          functions[MR - 1](row);
        }
      }
      if (direct) continue;
      const bool whole = cols == conv.cols.out && conv.y.h == cols * conv.y.w;
      if (whole) write_tile(out, L, rows * cols, count, target, conv.y.w, conv.y.c, finish, 0);
      for (int64_t p = 0; p < rows && !whole; ++p)
        write_tile(out + p * out_h, L, cols, count, target + p * conv.y.h, conv.y.w, conv.y.c, finish, 0);
    }
  });
}

// sum[t] += x[q * step + offset[t]] * y[q], over `length` pixels of each of `rows` rows, for TAPS taps.
template <class T, int TAPS>
void correlate_taps(const T* x, int64_t x_row, int64_t step, const T* y, int64_t y_row, int64_t y_step, int64_t rows,
                    int64_t length, const int64_t* offset, T* sums, bool add) {
  using V = typename Simd<T>::V;
  constexpr int L = Simd<T>::lanes;
  V sum[TAPS] = {};
  for (int64_t p = 0; p < rows; ++p, x += x_row, y += y_row) {
    const T *at = x, *from = y;
    for (int64_t q = 0; q < length; ++q, at += step, from += y_step) {
      const V value = load(from);
      unroll<TAPS>([&](auto t) __attribute__((always_inline)) { sum[t] = fma(load(at + offset[t]), value, sum[t]); });
    }
  }
  unroll<TAPS>([&](auto t)
                   __attribute__((always_inline)) { store(sums + t * L, add ? load(sums + t * L) + sum[t] : sum[t]); });
}

template <class T, int... t>
constexpr auto taps_table(std::integer_sequence<int, t...>) {
  return std::array{correlate_taps<T, t + 1>...};
}

constexpr int most_taps = registers > 16 ? 14 : 7;

template <class T>
constexpr auto correlate_tap_sets = taps_table<T>(std::make_integer_sequence<int, most_taps>());

template <class S>
void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
  using T = Sum<S>;
  constexpr int L = lanes<S>;
  const Lanes share(conv, L);
  const Plan plan = slab::plan<S>(conv);
  const Correlation problem = forward_correlation(conv);
  const int64_t blocks = conv.N * plan.row_blocks * plan.col_blocks,
                taps = conv.rows.kernel * conv.cols.kernel * share.c;
  // The blocks are cut into chunks, each with sums of its own: a number that depends on the problem alone.
  const int64_t chunks = std::clamp<int64_t>(
      std::min<int64_t>(64 / share.vectors, (4 << 20) / (share.vectors * taps * L * int64_t(sizeof(T)))), 1,
      std::max<int64_t>(1, blocks));
  const int64_t size = taps * L;
  Scratch scratch;
  T* sums = scratch.take<T>(share.vectors * chunks * size);
  // Vectors are neighbours in memory: unit by unit they share cache lines of pixels.
  parallel_for(
      share.vectors * chunks, double(blocks) / chunks * plan.rows * plan.cols * (taps + 4) * L, [&](int64_t unit) {
        const int64_t v = unit % share.vectors, chunk = unit / share.vectors;
        T* total = sums + (v * chunks + chunk) * size;
        const int64_t k = v * share.out, count = std::min(share.out, conv.K - k);
        const FlushSubnormals flush;
        const int64_t begin = blocks * chunk / chunks, end = blocks * (chunk + 1) / chunks;
        if (begin == end) std::fill_n(total, size, T(0));
        for (int64_t b = begin; b < end; ++b) {
          const int64_t q0 = b % plan.col_blocks * plan.cols, p0 = b / plan.col_blocks % plan.row_blocks * plan.rows,
                        n = b / plan.col_blocks / plan.row_blocks;
          const Block block{
              n, n + 1, p0, std::min(p0 + plan.rows, conv.rows.out), q0, std::min(q0 + plan.cols, conv.cols.out)};
          const int64_t rows = block.p_end - block.p, cols = block.q_end - block.q;
          Scratch scratch;
          Slabs<S> slabs(problem, block, share, scratch);
          slabs.read(slabs.patch.rows.size, v, x);
          int64_t* offset = scratch.take<int64_t>(taps);
          for (int64_t i = 0; i < taps; ++i) {
            const int64_t s = i % conv.cols.kernel, c = i / conv.cols.kernel % share.c,
                          r = i / conv.cols.kernel / share.c;
            offset[i] = c * slabs.patch.image_pitch() + r * conv.rows.dilation * slabs.patch.row_pitch() +
                        s * conv.cols.dilation * L;
          }
          const S* from = y + n * conv.y.n + k * conv.y.c + block.p * conv.y.h + block.q * conv.y.w;
          const bool in_place = std::is_same_v<S, T> && conv.y.c == 1 && count == L;
          T* copy = in_place ? nullptr : scratch.take<T>(rows * cols * L);
          for (int64_t p = 0; p < rows && !in_place; ++p)
            read_tile(from + p * conv.y.h, conv.y.w, conv.y.c, cols, count, copy + p * cols * L, L);
          const T* gradient = in_place ? reinterpret_cast<const T*>(from) : copy;
          const int64_t y_row = in_place ? conv.y.h : cols * L, y_step = in_place ? conv.y.w : L;
          // A few rows at a time, so that all taps find them in L1.
          const int64_t sets = (taps - 1) / most_taps + 1, row_step = slabs.patch.rows.step * slabs.patch.row_pitch();
          const int64_t together = std::clamp<int64_t>(256 / cols, 1, rows);
          for (int64_t p = 0; p < rows; p += together)
            for (int64_t set = 0; set < sets; ++set) {
              const int64_t t = taps * set / sets, TAPS = taps * (set + 1) / sets - t;
              correlate_tap_sets<T>[TAPS - 1](slabs.data + p* row_step, row_step, slabs.patch.cols.step* L,
                                              gradient + p* y_row, y_row, y_step, std::min(together, rows - p), cols,
                                              offset + t, total + t* L, b > begin || p > 0);
            }
        }
      });

  for (int64_t v = 0; v < share.vectors; ++v) {
    T* total = sums + v * chunks * size;
    for (int64_t chunk = 1; chunk < chunks; ++chunk)
      for (int64_t i = 0; i < size; i += L) store(total + i, load(total + i) + load(total + chunk * size + i));
    for (int64_t lane = 0; lane < std::min(share.out, conv.K - v * share.out); ++lane) {
      const T* from = total + lane;
      S* to = w + (v * share.out + lane) * conv.w.n;
      for (int64_t r = 0; r < conv.rows.kernel; ++r)
        for (int64_t c = 0; c < share.c; ++c)
          for (int64_t s = 0; s < conv.cols.kernel; ++s, from += L)
            to[r * conv.w.h + s * conv.w.w + c * conv.w.c] = S(*from);
    }
  }
}

}  // namespace slab
