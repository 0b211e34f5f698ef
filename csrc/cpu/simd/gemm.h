// gemm: the convolution as an implicit matrix product, for any geometry. See docs/kernels.md.
//
// Lanes are output channels. The weights are packed once per call into panels of NR output channels; a unit of work
// copies the patch of the input that its block of output pixels reads, and multiplies: each register tile is up to
// 14 pixels x 32 channels, and the taps of a kernel row are one contiguous run of the patch. Where output channels are
// too few to fill the lanes, lanes are the elements of such runs (dot.h), and everything else stays as it is.

namespace gemm {

// How a correlation of tensors of S is cut, with elements E of products: numbers, or pairs of channels. Nothing here
// changes a sum but `channels`, which depends on neither batch nor threads.
template <class E, class S>
struct Plan {
  static constexpr int64_t panel_bytes = 320 << 10;  // of one panel: half of L2
  static constexpr int64_t set_bytes = 4 << 20;      // of the panels that are multiplied with one patch, from L3
  static constexpr int64_t patch_bytes = 256 << 10;  // a quarter
  static constexpr int64_t weights_bytes = 8 << 20;  // packed at a time
  static constexpr int64_t buffer_bytes = 2 << 20;   // of results on their way to another layout or dtype
  static constexpr int64_t most_channels = 512;

  bool dots;                         // lanes are elements of runs
  int64_t lanes_per_panel;           // NR: output channels
  int64_t pitch;                     // of a patch, from one pixel to the next
  int64_t joined;                    // taps that are neighbours in a patch, and so one run
  int64_t channels, channel_blocks;  // of the reduction, at a time; elements
  int64_t panels;                    // in a group
  int64_t panels_per_unit;
  bool in_place;  // x is its own patch
  bool direct;    // tiles are stored where they belong; else by way of a buffer
  bool possible;
  Blocks<S> blocks;

  // Of a panel: the last one of a group may do with half.
  int64_t lanes_of(int64_t panel, int64_t K) const {
    return !dots && panel % panels == panels - 1 && K - (panels - 1) * lanes_per_panel <= lanes<S> ? lanes<S>
                                                                                                   : lanes_per_panel;
  }
  // Vectors of runs that are multiplied with each output channel.
  double dots_per_pixel(int64_t taps) const {
    return double(taps / joined) * (dot_length<E>(joined * channels) / lanes<S>)*channel_blocks;
  }
  // Of packed weights for so many channels.
  int64_t block_size(const Conv& conv, int64_t channels) const {
    const int64_t taps = conv.rows.kernel * conv.cols.kernel;
    return lanes_per_panel * (dots ? taps / joined * dot_length<E>(joined * channels) : taps * channels);
  }
};

constexpr double sum_of_lanes = 4;  // what it costs, in multiplications of vectors

// The steps of a reduction, cut into pieces of about longest_sum steps (up to 3 more): some whole runs, or a part of
// one.
struct Pieces {
  struct Piece {
    int64_t first, runs, length;  // offsets [first, first + runs), each of so many steps
    int64_t steps_before;         // in the whole reduction
  };
  int64_t longest;
  int64_t* offset;
  Piece* pieces;
  int64_t count = 0;

  // Of `runs` runs of at most `length` steps.
  Pieces(int64_t longest, int64_t runs, int64_t length, Scratch& scratch)
      : longest(longest),
        offset(scratch.take<int64_t>(runs * of_run(length))),
        pieces(scratch.take<Piece>(runs * of_run(length))) {}

  int64_t of_run(int64_t length) const { return (length - 1) / longest + 1; }

  // run_offset(i) is where run i begins.
  template <class RunOffset>
  void set(int64_t runs, int64_t length, const RunOffset& run_offset) {
    count = 0;
    if (const int64_t parts = of_run(length); parts > 1) {
      const auto begin = [&](int64_t part) { return part < parts ? length * part / parts / 4 * 4 : length; };
      for (int64_t i = 0; i < runs; ++i)
        for (int64_t part = 0; part < parts; ++part, ++count) {
          offset[count] = run_offset(i) + begin(part);
          pieces[count] = {count, 1, begin(part + 1) - begin(part), i * length + begin(part)};
        }
      return;
    }
    for (int64_t i = 0; i < runs; ++i) offset[i] = run_offset(i);
    const int64_t most = std::max<int64_t>(1, longest / std::max<int64_t>(1, length));
    for (int64_t i = 0; i < runs; i += most) pieces[count++] = {i, std::min(most, runs - i), length, i * length};
  }
};

template <class E, class S>
Plan<E, S> plan(const Correlation& conv) {
  using Plan = gemm::Plan<E, S>;
  constexpr bool plain = std::is_same_v<S, E>, paired = numbers<E> > 1;
  constexpr int L = lanes<S>, size = sizeof(E);
  const int64_t taps = conv.rows.kernel * conv.cols.kernel, K = conv.K_per_group(),
                C = (conv.C_per_group() + numbers<E> - 1) / numbers<E>;
  const int64_t P = conv.rows.out, Q = conv.cols.out, width = K <= L ? L : 2 * L;

  // Channels at a time: as many as keep a panel small.
  const double most =
      std::min<double>(Plan::most_channels, double(Plan::panel_bytes) / size / width / std::max(1.0, double(taps)));
  int64_t channel_blocks = std::max<int64_t>(1, std::ceil(C / std::max(1.0, most)));
  const int64_t channels = std::max<int64_t>(1, (C - 1) / channel_blocks + 1);
  channel_blocks = std::max<int64_t>(1, (C - 1) / channels + 1);

  // Pixels at a time: a multiple of the register tile.
  Plan plan{false, width, channels, 1,     channels, channel_blocks,
            0,     0,     false,    false, false,    Blocks<S>(conv, 16 * most_rows<2>, channels, Plan::patch_bytes)};
  // Pixels a multiple of 2 KiB apart share few sets of L1: keep them apart.
  if (conv.cols.kernel <= 1 && channels * size % 2048 == 0) plan.pitch += L;
  if (conv.cols.dilation == 1) plan.joined = std::max<int64_t>(1, conv.cols.kernel);
  plan.dots = !paired && K <= most_dots<S> && K * (plan.dots_per_pixel(taps) + sum_of_lanes) < double(taps) * C;
  if (plan.dots) plan.lanes_per_panel = K;
  const int64_t NR = plan.lanes_per_panel;
  plan.panels = (K - 1) / NR + 1;
  const double panel = double(plan.block_size(conv, channels)) * channel_blocks * size;
  plan.direct = conv.y.c == 1 && (plain || (paired && channel_blocks == 1));
  plan.possible = plan.blocks.patch_bytes <= 4.0 * Plan::patch_bytes && panel <= Plan::weights_bytes &&
                  double(conv.groups) * plan.panels * NR * size <= Plan::weights_bytes / 2;  // bias

  const int64_t spread = 2048;  // bytes: pixels that are multiples of a larger power of two apart share sets of L1
  const auto is_whole = [](int64_t count) { return count % numbers<E> == 0; };
  plan.in_place = (plain || paired) && taps == 1 && conv.x.c == 1 && conv.rows.pad == 0 && conv.cols.pad == 0 &&
                  conv.rows.position(P - 1, 0) < conv.rows.in && conv.cols.position(Q - 1, 0) < conv.cols.in &&
                  conv.x.w * conv.cols.stride * int64_t(sizeof(S)) % (2 * spread) != 0 &&
                  is_whole(conv.C_per_group()) && is_whole(conv.x.n) && is_whole(conv.x.h) && is_whole(conv.x.w);

  const double fitting =
      std::min(Plan::set_bytes / std::max(1.0, panel / channel_blocks),
               plan.direct ? double(plan.panels) : double(Plan::buffer_bytes) / (plan.blocks.pixels() * NR * size));
  plan.panels_per_unit = std::clamp<int64_t>(int64_t(fitting), 1, plan.panels);
  return plan;
}

// The product of `rows` rows and one panel, whose lanes are `width` output channels.
template <class E, class Out>
INLINE void multiply_panel(const Product<E, Out>& product, bool dots, int64_t width, int rows) {
  if constexpr (numbers<E> == 1)
    if (dots) return multiply_dots<E>[width - 1](product, rows);
  if (width == lanes<E>) {
    Products<E, 1, Out>::by_rows[rows - 1](product);
  } else {
    Products<E, 2, Out>::by_rows[rows - 1](product);
  }
}

// The same piece by piece. The sums of all but the last one wait in a tile of their own.
template <class E>
void multiply_pieces(const Product<E>& whole, const Pieces& pieces, bool dots, int64_t width, int rows) {
  if (pieces.count == 1) return multiply_panel(whole, dots, width, rows);
  Sum<E> tile[most_rows<1>][2 * lanes<E>];
  Sum<E>* waiting[most_rows<1>];
  for (int m = 0; m < rows; ++m) waiting[m] = tile[m];
  Product<E> product = whole;
  for (int64_t i = 0; i < pieces.count; ++i) {
    const auto& [first, runs, length, steps_before] = pieces.pieces[i];
    const bool last = i == pieces.count - 1;
    product.offset = whole.offset + first, product.runs = runs, product.length = length;
    product.b = whole.b + steps_before * width;
    product.c = last ? whole.c : waiting, product.lane = last ? whole.lane : 0;
    if (i > 0) product.from = waiting;
    product.finish = last ? whole.finish : nullptr;
    product.stream = last && whole.stream;
    multiply_panel(product, dots, width, rows);
  }
}

// About the cycles per output pixel, in float32: multiplications, a tile's rows, and copies, or transpositions where
// channels are not neighbours.
inline double copies(const Conv& conv) {
  return 12 + (conv.x.c == 1 ? 0.1 : 0.4) * conv.C_per_group() + (conv.y.c == 1 ? 0.1 : 0.4) * conv.K_per_group();
}

inline double cost(const Correlation& conv) {
  constexpr int L = lanes<float>;
  const auto plan = gemm::plan<float, float>(conv);
  const double taps = double(conv.rows.kernel) * conv.cols.kernel, C = conv.C_per_group(), K = conv.K_per_group();
  const double products = plan.dots ? K * (plan.dots_per_pixel(taps) + sum_of_lanes) : taps * C * std::ceil(K / L);
  return products + copies(conv);
}

// The result of a correlation without taps, which grad_input has where the stride is larger than the kernel.
template <class S>
void write_zeros(const Correlation& conv, S* y) {
  const bool past_caches = streams(conv, y, conv.K);
  parallel_for(conv.N * conv.rows.out, double(conv.cols.out) * conv.K, [&](int64_t unit) {
    S* row = y + unit / conv.rows.out * conv.y.n + unit % conv.rows.out * conv.y.h;
    for (int64_t q = 0; q < conv.cols.out; ++q, row += conv.y.w) {
      if (past_caches) {
        float *to = reinterpret_cast<float*>(row), *end = reinterpret_cast<float*>(row + conv.K);
        for (; to < end; to += lanes<float>) stream(to, Vector<float>{});
      } else if (conv.y.c == 1) {
        std::memset(row, 0, conv.K * sizeof(S));
      } else {
        for (int64_t k = 0; k < conv.K; ++k) row[k * conv.y.c] = S(0);
      }
    }
    if (past_caches) finish_streams();
  });
}

template <class E, class S>
void correlate(const Correlation& conv, const S* x, const S* w, S* y, const Epilogue& epilogue) {
  if (conv.rows.kernel * conv.cols.kernel == 0) return write_zeros(conv, y);
  using T = Sum<S>;
  constexpr int L = lanes<S>, per = numbers<E>;
  using Plan = gemm::Plan<E, S>;
  const Plan plan = gemm::plan<E, S>(conv);
  // Not for dots, whose lanes each add up a part, nor for pairs, whose results are rounded to bfloat16.
  const int64_t longest = plan.dots || per > 1 ? std::numeric_limits<int64_t>::max() : longest_sum;
  const bool stream = plan.direct && streams(conv, y, conv.K_per_group());
  const int64_t taps = conv.rows.kernel * conv.cols.kernel, K = conv.K_per_group(), C = conv.C_per_group();
  const int64_t NR = plan.lanes_per_panel, block_size = plan.block_size(conv, plan.channels),
                panel_size = block_size * plan.channel_blocks;
  const int64_t P = conv.rows.out, Q = conv.cols.out;
  Scratch scratch;

  // bias[group][panel][lane]
  T* bias = nullptr;
  if (epilogue.bias) {
    bias = scratch.take<T>(conv.groups * plan.panels * NR);
    for (int64_t k = 0; k < conv.K; ++k)
      bias[k / K * plan.panels * NR + k % K] = T(static_cast<const S*>(epilogue.bias)[k * epilogue.bias_stride]);
  }

  const int64_t blocks = plan.blocks.count();

  // Rounds over panels of all groups, so that the packed weights stay bounded.
  const int64_t all_panels = conv.groups * plan.panels;
  const int64_t per_round =
      std::clamp<int64_t>(Plan::weights_bytes / int64_t(sizeof(E)) / std::max<int64_t>(1, panel_size), 1, all_panels);
  E* packed = scratch.take<E>(per_round * panel_size);
  for (int64_t first = 0; first < all_panels; first += per_round) {
    const int64_t round = std::min(per_round, all_panels - first);
    parallel_for(round * plan.channel_blocks, double(panel_size) / plan.channel_blocks, [&](int64_t unit) {
      const int64_t panel = first + unit / plan.channel_blocks, block = unit % plan.channel_blocks;
      const int64_t c = block * plan.channels * per, channels = std::min(plan.channels * per, C - c);
      E* to = packed + (panel - first) * panel_size + block * block_size;
      if constexpr (per == 1)
        if (plan.dots) return pack_dots(conv, w, panel, plan.joined, c, channels, to);
      pack_weights(conv, w, panel / plan.panels, panel % plan.panels * NR, plan.lanes_of(panel, K), c, channels, to);
    });

    // Units: blocks of pixels x sets of panels; a set does not cross groups.
    int64_t per_unit = plan.panels_per_unit;
    while (per_unit > 1 && blocks * (round / per_unit) < 8 * thread_count()) per_unit = (per_unit + 1) / 2;
    const int64_t sets_per_group = (plan.panels - 1) / per_unit + 1;
    const int64_t first_group = first / plan.panels, last_group = (first + round - 1) / plan.panels;
    const int64_t sets = (last_group - first_group + 1) * sets_per_group;
    const double work = double(plan.blocks.pixels()) * taps * C * per_unit * NR;
    parallel_for(blocks * sets, work, [&](int64_t unit) {
      const int64_t set = unit / blocks, group = first_group + set / sets_per_group;
      const int64_t panel = std::max(first, group * plan.panels + set % sets_per_group * per_unit);
      const int64_t panel_end = std::min(
          {first + round, (group + 1) * plan.panels, group * plan.panels + (set % sets_per_group + 1) * per_unit});
      if (panel >= panel_end) return;
      const Block block = plan.blocks[unit % blocks];

      const FlushSubnormals flush;
      Scratch scratch;
      const Patch patch(conv, block, plan.pitch);
      const bool in_place = plan.in_place, direct = plan.direct;
      E* copy = in_place ? nullptr : scratch.take<E>((block.n_end - block.n) * patch.image_pitch());
      const int64_t pixels = block.pixels(), width = (panel_end - panel) * NR;
      T* buffer = direct ? nullptr : scratch.take<T>(pixels * width);

      const Finish<T> finish{bias ? bias + panel * NR : nullptr, epilogue.activation, T(epilogue.slope)};

      // The runs of a patch that belong to one output.
      const int64_t runs = taps / plan.joined;
      Pieces pieces(longest, runs, plan.joined * plan.channels, scratch);
      for (int64_t cb = 0; cb < plan.channel_blocks; ++cb) {
        const int64_t c = cb * plan.channels * per, count = std::min(plan.channels * per, C - c),
                      channels = (count - 1) / per + 1;
        Patch cut = patch;
        cut.pitch = plan.pitch - plan.channels + channels;
        const E* source;
        int64_t step_w, step_h, step_n, tap_h, tap_w;
        if (in_place) {
          source = reinterpret_cast<const E*>(x + block.n * conv.x.n + (group * C + c) * conv.x.c +
                                              conv.rows.position(block.p, 0) * conv.x.h +
                                              conv.cols.position(block.q, 0) * conv.x.w);
          step_n = conv.x.n / per, step_h = conv.rows.stride * conv.x.h / per,
          step_w = conv.cols.stride * conv.x.w / per;
          tap_h = tap_w = 0;
        } else {
          read_patch(conv, block, cut, group * C + c, count, x, copy);
          source = copy;
          step_n = cut.image_pitch(), step_h = cut.rows.step * cut.row_pitch(), step_w = cut.cols.step * cut.pitch;
          tap_h = conv.rows.dilation * cut.row_pitch(), tap_w = conv.cols.dilation * cut.pitch;
        }
        pieces.set(runs, plan.joined * channels, [&](int64_t i) {
          return i * plan.joined / conv.cols.kernel * tap_h + i * plan.joined % conv.cols.kernel * tap_w;
        });

        const bool finishes = direct && cb == plan.channel_blocks - 1 && !finish.does_nothing();
        // All tiles of the block, to the results from `to` on.
        const auto multiply_tiles = [&]<class Out>(Out* to) {
          Product<E, Out> product{};
          product.offset = pieces.offset, product.runs = runs, product.length = plan.joined * channels;
          product.stream = stream && plan.channel_blocks == 1;
          product.finish = finishes ? &finish : nullptr;

          const int most = plan.dots ? dot_rows(NR) : NR == L ? most_rows<1> : most_rows<2>;
          const int64_t tiles = (pixels - 1) / most + 1;
          // Where the next pixel is, in the source and in the result, and what takes both from one row to the next.
          const int64_t rows = block.p_end - block.p, cols = block.q_end - block.q;
          const int64_t out_w = direct ? conv.y.w : width, out_h = direct ? conv.y.h : cols * width,
                        out_n = direct ? conv.y.n : rows * out_h;
          const E* from = source;
          int64_t pixel = 0, cols_left = cols, rows_left = rows;
          const E* a[2][most_rows<1>];
          Out* out[2][most_rows<1>];
          const auto set_rows = [&](int64_t tile) {
            const int64_t end = pixels * (tile + 1) / tiles;
            const int MR = end - pixel;
            for (int m = 0; m < MR; ++m, ++pixel) {
              a[tile % 2][m] = from, out[tile % 2][m] = to;
              from += step_w, to += out_w;
              if (--cols_left > 0) continue;
              from += step_h - cols * step_w, to += out_h - cols * out_w, cols_left = cols;
              if (--rows_left > 0) continue;
              from += step_n - rows * step_h, to += out_n - rows * out_h, rows_left = rows;
            }
            // Dots always take as many rows as there may be.
            for (int m = MR; plan.dots && m < most; ++m) a[tile % 2][m] = a[tile % 2][0];
            return MR;
          };
          int next = set_rows(0);
          for (int64_t tile = 0; tile < tiles; ++tile) {
            const int MR = next;
            next = tile + 1 < tiles ? set_rows(tile + 1) : 0;
            product.a = a[tile % 2], product.c = out[tile % 2];
            FetchRows<E> fetch;
            if (next && in_place)
              fetch = {a[(tile + 1) % 2], next, channels, (panel_end - panel) * ((channels - 1) / steps_per_fetch + 1)};
            product.fetch = &fetch;
            for (int64_t i = panel; i < panel_end; ++i) {
              const int64_t width = plan.lanes_of(i, K);
              product.lane = (i - panel) * NR;
              product.count = direct ? K - (i - group * plan.panels) * NR : width;
              product.b = packed + (i - first) * panel_size + cb * block_size;
              if constexpr (std::is_same_v<Out, T>) {
                const T* before[most_rows<1>];  // the sums of earlier channels
                for (int m = 0; cb > 0 && m < MR; ++m) before[m] = product.c[m] + product.lane;
                product.from = cb > 0 ? before : nullptr;
                multiply_pieces(product, pieces, plan.dots, width, MR);
              } else {
                multiply_panel(product, false, width, MR);  // pairs, all channels at once
              }
            }
          }
        };
        if (!direct) {
          multiply_tiles(buffer);
        } else if constexpr (std::is_same_v<S, E> || per > 1) {
          multiply_tiles(y + block.n * conv.y.n + block.p * conv.y.h + block.q * conv.y.w + group * K +
                         (panel - group * plan.panels) * NR);
        }
      }
      if (stream) finish_streams();
      if (direct) return;
      const int64_t k = (panel - group * plan.panels) * NR, count = std::min(width, K - k);
      const T* from = buffer;
      const bool whole = conv.y.h == Q * conv.y.w && block.q_end - block.q == Q;  // rows of y follow one another
      const int64_t run = whole ? (block.p_end - block.p) * Q : block.q_end - block.q;
      for (int64_t i = block.n; i < block.n_end; ++i)
        for (int64_t j = block.p; j < block.p_end; j += whole ? P : 1, from += run * width)
          write_tile(from, width, run, count,
                     y + i * conv.y.n + (group * K + k) * conv.y.c + j * conv.y.h + block.q * conv.y.w, conv.y.w,
                     conv.y.c, finish, 0);
    });
  }
}

}  // namespace gemm
