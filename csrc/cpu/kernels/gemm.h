// gemm: forward and grad_input as an implicit matrix product, for any geometry. See docs/kernels.md.
//
// Lanes are output channels. The weights are packed once per call into panels of NR output channels. A task copies the
// input patch that its block of output pixels reads, and multiplies it with some panels. Each register tile has up to
// 14 pixels x 32 output channels, and the taps of a kernel row are one contiguous run of the patch. Where the output
// channels are too few to fill the lanes, lanes are the elements of such runs (micro/small_k.h, "small_k"); everything
// else stays the same.

namespace gemm {

// How a correlation of tensors of S is cut into tasks and tiles. GEMM elements E are single values, or bf16 pairs of
// channels. Of these figures only `channels` affects the order of a reduction, and it depends on neither the batch nor
// the number of threads.
template <class E, class S>
struct Plan {
  static constexpr int64_t panel_bytes = 320 << 10;  // one panel of packed weights: a third of L2 (1 MiB)
  static constexpr int64_t set_bytes = 4 << 20;      // the panels that are multiplied with one patch, from L3
  static constexpr int64_t patch_bytes = 256 << 10;  // the patch of a block: a quarter of L2
  static constexpr int64_t weights_bytes = 8 << 20;  // the packed weights of one round
  static constexpr int64_t buffer_bytes = 2 << 20;   // the staging buffer, for results in another layout or dtype
  static constexpr int64_t max_channels = 512;       // of a channel block

  bool small_k;                      // lanes are elements of runs (small_k_tile), not output channels
  int64_t lanes_per_panel;           // NR: output channels of a panel
  int64_t pitch;                     // elements of a patch from one pixel to the next
  int64_t joined;                    // neighbouring taps that form one contiguous run of a patch
  int64_t channels, channel_blocks;  // elements of a channel block, and number of blocks, of the reduction
  int64_t panels;                    // in a group
  int64_t panels_per_task;
  bool in_place;  // x is read in place, without a patch
  bool direct;    // tiles are stored straight to y; otherwise to a staging buffer
  bool possible;
  Blocks<S> blocks;

  std::string describe() const {
    std::string text = "blocks of " + std::to_string(blocks.pixels()) + " pixels and " +
                       std::to_string(channels * values_per<E>) + " input channels";
    if (small_k) return text + ", lanes are elements of the reduction";
    text += ", panels of " + std::to_string(lanes_per_panel) + " output channels";
    if (in_place) text += ", x is read in place";
    if (!direct) text += ", results are staged";
    return text;
  }

  // The lanes of a panel. For the last panel of a group, one vector may be enough.
  int64_t lanes_of(int64_t panel, int64_t K) const {
    return !small_k && panel % panels == panels - 1 && K - (panels - 1) * lanes_per_panel <= lanes<S> ? lanes<S>
                                                                                                      : lanes_per_panel;
  }
  // With small_k: the vectors of a pixel's runs, each of which is multiplied with every output channel.
  double small_k_fmas_per_pixel(int64_t taps) const {
    return double(taps / joined) * (small_k_length<E>(joined * channels) / lanes<S>)*channel_blocks;
  }
  // Elements of a panel's packed weights for a block of `channels` channels.
  int64_t block_size(const Conv& conv, int64_t channels) const {
    const int64_t taps = conv.rows.kernel * conv.cols.kernel;
    return lanes_per_panel * (small_k ? taps / joined * small_k_length<E>(joined * channels) : taps * channels);
  }
};

constexpr double lane_reduction_cost = 4;  // of adding the lanes of an accumulator, in multiplications of vectors

// A reduction cut into pieces of about max_reduction steps (up to 3 more): each is some whole runs, or a part of one.
struct Pieces {
  struct Piece {
    int64_t first, runs, length;  // the runs at offsets [first, first + runs), of `length` steps each
    int64_t steps_before;         // steps of the reduction before this piece
  };
  int64_t longest;
  int64_t* offset;
  Piece* pieces;
  int64_t count = 0;

  // Reserves memory for `runs` runs of at most `length` steps.
  Pieces(int64_t longest, int64_t runs, int64_t length, Scratch& scratch)
      : longest(longest),
        offset(scratch.take<int64_t>(runs * of_run(length))),
        pieces(scratch.take<Piece>(runs * of_run(length))) {}

  // The number of pieces that a run of `length` steps is cut into.
  int64_t of_run(int64_t length) const { return (length - 1) / longest + 1; }

  // Cuts `runs` runs of `length` steps; run_offset(i) is the offset of run i. Cuts within a run are at multiples of 4.
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

// Plans a correlation so that panels and patches stay in the caches. Not `possible` if they exceed the working memory.
template <class E, class S>
Plan<E, S> plan(const Correlation& conv) {
  using Plan = gemm::Plan<E, S>;
  constexpr bool plain = std::is_same_v<S, E>, paired = values_per<E> > 1;
  constexpr int L = lanes<S>, size = sizeof(E);
  const int64_t taps = conv.rows.kernel * conv.cols.kernel, K = conv.K_per_group(),
                C = (conv.C_per_group() + values_per<E> - 1) / values_per<E>;
  const int64_t P = conv.rows.out, Q = conv.cols.out, width = K <= L ? L : 2 * L;

  // Channels per block: as many as keep a panel below panel_bytes.
  const double most =
      std::min<double>(Plan::max_channels, double(Plan::panel_bytes) / size / width / std::max(1.0, double(taps)));
  int64_t channel_blocks = std::max<int64_t>(1, std::ceil(C / std::max(1.0, most)));
  const int64_t channels = std::max<int64_t>(1, (C - 1) / channel_blocks + 1);
  channel_blocks = std::max<int64_t>(1, (C - 1) / channels + 1);

  // Pixels per block: a multiple of the register tile.
  Plan plan{false, width, channels, 1,     channels, channel_blocks,
            0,     0,     false,    false, false,    Blocks<S>(conv, 16 * max_rows<2>, channels, Plan::patch_bytes)};
  // Pixels that are a multiple of 2 KiB apart fall into few sets of L1: a longer pitch spreads them.
  if (conv.cols.kernel <= 1 && channels * size % 2048 == 0) plan.pitch += L;
  if (conv.cols.dilation == 1) plan.joined = std::max<int64_t>(1, conv.cols.kernel);
  plan.small_k = !paired && K <= max_small_k<S> &&
                 K * (plan.small_k_fmas_per_pixel(taps) + lane_reduction_cost) < double(taps) * C;
  if (plan.small_k) plan.lanes_per_panel = K;
  const int64_t NR = plan.lanes_per_panel;
  plan.panels = (K - 1) / NR + 1;
  const double panel = double(plan.block_size(conv, channels)) * channel_blocks * size;
  plan.direct = conv.y.c == 1 && (plain || (paired && channel_blocks == 1));
  plan.possible = plan.blocks.patch_bytes <= 4.0 * Plan::patch_bytes && panel <= Plan::weights_bytes &&
                  double(conv.groups) * plan.panels * NR * size <= Plan::weights_bytes / 2;  // packed bias

  // x is not read in place if its pixels are a multiple of 4 KiB apart, where they fall into few sets of L1.
  const int64_t spread = 2048;
  const auto is_whole = [](int64_t count) { return count % values_per<E> == 0; };
  plan.in_place = (plain || paired) && taps == 1 && conv.x.c == 1 && conv.rows.pad == 0 && conv.cols.pad == 0 &&
                  conv.rows.position(P - 1, 0) < conv.rows.in && conv.cols.position(Q - 1, 0) < conv.cols.in &&
                  conv.x.w * conv.cols.stride * int64_t(sizeof(S)) % (2 * spread) != 0 &&
                  is_whole(conv.C_per_group()) && is_whole(conv.x.n) && is_whole(conv.x.h) && is_whole(conv.x.w);

  const double fitting =
      std::min(Plan::set_bytes / std::max(1.0, panel / channel_blocks),
               plan.direct ? double(plan.panels) : double(Plan::buffer_bytes) / (plan.blocks.pixels() * NR * size));
  plan.panels_per_task = std::clamp<int64_t>(int64_t(fitting), 1, plan.panels);
  return plan;
}

// Multiplies `rows` rows with one panel of `width` lanes: a register tile.
template <class E, class Out>
INLINE void multiply_panel(const GemmTile<E, Out>& product, bool small_k, int64_t width, int rows) {
  if constexpr (values_per<E> == 1)
    if (small_k) return small_k_tiles<E>[width - 1](product, rows);
  if (width == lanes<E>) {
    GemmTiles<E, 1, Out>::by_rows[rows - 1](product);
  } else {
    GemmTiles<E, 2, Out>::by_rows[rows - 1](product);
  }
}

// multiply_panel, piece by piece. All pieces but the last accumulate into a local tile, and the last one stores to C.
template <class E>
void multiply_pieces(const GemmTile<E>& whole, const Pieces& pieces, bool small_k, int64_t width, int rows) {
  if (pieces.count == 1) return multiply_panel(whole, small_k, width, rows);
  Acc<E> tile[max_rows<1>][2 * lanes<E>];
  Acc<E>* waiting[max_rows<1>];
  for (int m = 0; m < rows; ++m) waiting[m] = tile[m];
  GemmTile<E> product = whole;
  for (int64_t i = 0; i < pieces.count; ++i) {
    const auto& [first, runs, length, steps_before] = pieces.pieces[i];
    const bool last = i == pieces.count - 1;
    product.offset = whole.offset + first, product.runs = runs, product.length = length;
    product.b = whole.b + steps_before * width;
    product.c = last ? whole.c : waiting, product.lane = last ? whole.lane : 0;
    if (i > 0) product.from = waiting;
    product.fused = last ? whole.fused : nullptr;
    product.stream = last && whole.stream;
    multiply_panel(product, small_k, width, rows);
  }
}

// The estimated cycles per output pixel, in float32, besides the multiplications: 12 for a row of a tile, and 0.1 per
// channel to copy x and y, or 0.4 to transpose them where channels are not contiguous.
inline double copies(const Conv& conv) {
  return 12 + (conv.x.c == 1 ? 0.1 : 0.4) * conv.C_per_group() + (conv.y.c == 1 ? 0.1 : 0.4) * conv.K_per_group();
}

// The estimated cycles per output pixel, in float32, with one multiplication of vectors per cycle.
inline double cost(const Correlation& conv) {
  constexpr int L = lanes<float>;
  const auto plan = gemm::plan<float, float>(conv);
  const double taps = double(conv.rows.kernel) * conv.cols.kernel, C = conv.C_per_group(), K = conv.K_per_group();
  const double products =
      plan.small_k ? K * (plan.small_k_fmas_per_pixel(taps) + lane_reduction_cost) : taps * C * std::ceil(K / L);
  return products + copies(conv);
}

// Fills the result of a correlation without taps with zeros. grad_input has such phases where the stride is larger than
// the kernel.
template <class S>
void write_zeros(const Correlation& conv, S* y) {
  const bool non_temporal = streams(conv, y, conv.K);
  parallel_for(conv.N * conv.rows.out, double(conv.cols.out) * conv.K, [&](int64_t task) {
    S* row = y + task / conv.rows.out * conv.y.n + task % conv.rows.out * conv.y.h;
    for (int64_t q = 0; q < conv.cols.out; ++q, row += conv.y.w) {
      if (non_temporal) {
        float *to = reinterpret_cast<float*>(row), *end = reinterpret_cast<float*>(row + conv.K);
        for (; to < end; to += lanes<float>) stream(to, Vector<float>{});
      } else if (conv.y.c == 1) {
        std::memset(row, 0, conv.K * sizeof(S));
      } else {
        for (int64_t k = 0; k < conv.K; ++k) row[k * conv.y.c] = S(0);
      }
    }
    if (non_temporal) finish_streams();
  });
}

// Computes one correlation: y = activation(correlation of x and w + bias).
template <class E, class S>
void correlate(const Correlation& conv, const Plan<E, S>& plan, const S* x, const S* w, S* y,
               const Epilogue& epilogue) {
  if (conv.rows.kernel * conv.cols.kernel == 0) return write_zeros(conv, y);
  using T = Acc<S>;
  constexpr int L = lanes<S>, per = values_per<E>;
  using Plan = gemm::Plan<E, S>;
  // The reduction is not cut into pieces for small_k, where each lane accumulates only a part of it, nor for bf16
  // pairs, whose results are rounded to bfloat16.
  const int64_t longest = plan.small_k || per > 1 ? std::numeric_limits<int64_t>::max() : max_reduction;
  const bool stream = plan.direct && streams(conv, y, conv.K_per_group());
  const int64_t taps = conv.rows.kernel * conv.cols.kernel, K = conv.K_per_group(), C = conv.C_per_group();
  const int64_t NR = plan.lanes_per_panel, block_size = plan.block_size(conv, plan.channels),
                panel_size = block_size * plan.channel_blocks;
  const int64_t P = conv.rows.out, Q = conv.cols.out;
  Scratch scratch;

  // bias[group][panel][lane]
  const T* bias = pack_bias<S>(epilogue, conv.K, K, plan.panels * NR, scratch);

  const int64_t blocks = plan.blocks.count();

  // The panels of all groups are processed in rounds, so that the packed weights stay below weights_bytes.
  const int64_t all_panels = conv.groups * plan.panels;
  const int64_t per_round =
      std::clamp<int64_t>(Plan::weights_bytes / int64_t(sizeof(E)) / std::max<int64_t>(1, panel_size), 1, all_panels);
  E* packed = scratch.take<E>(per_round * panel_size);
  for (int64_t first = 0; first < all_panels; first += per_round) {
    const int64_t round = std::min(per_round, all_panels - first);
    parallel_for(round * plan.channel_blocks, double(panel_size) / plan.channel_blocks, [&](int64_t task) {
      const int64_t panel = first + task / plan.channel_blocks, block = task % plan.channel_blocks;
      const int64_t c = block * plan.channels * per, channels = std::min(plan.channels * per, C - c);
      E* to = packed + (panel - first) * panel_size + block * block_size;
      if constexpr (per == 1)
        if (plan.small_k) return pack_small_k(conv, w, panel, plan.joined, c, channels, to);
      pack_weights(conv, w, panel / plan.panels, panel % plan.panels * NR, plan.lanes_of(panel, K), c, channels, to);
    });

    // Tasks: blocks of pixels x sets of panels. A set does not cross groups.
    int64_t per_task = plan.panels_per_task;
    while (per_task > 1 && blocks * (round / per_task) < 8 * thread_count()) per_task = (per_task + 1) / 2;
    const int64_t sets_per_group = (plan.panels - 1) / per_task + 1;
    const int64_t first_group = first / plan.panels, last_group = (first + round - 1) / plan.panels;
    const int64_t sets = (last_group - first_group + 1) * sets_per_group;
    const double work = double(plan.blocks.pixels()) * taps * C * per_task * NR;
    parallel_for(blocks * sets, work, [&](int64_t task) {
      const int64_t set = task / blocks, group = first_group + set / sets_per_group;
      const int64_t panel = std::max(first, group * plan.panels + set % sets_per_group * per_task);
      const int64_t panel_end = std::min(
          {first + round, (group + 1) * plan.panels, group * plan.panels + (set % sets_per_group + 1) * per_task});
      if (panel >= panel_end) return;
      const Block block = plan.blocks[task % blocks];

      Scratch scratch;
      const Patch patch(conv, block, plan.pitch);
      const bool in_place = plan.in_place, direct = plan.direct;
      E* copy = in_place ? nullptr : scratch.take<E>((block.n_end - block.n) * patch.image_pitch());
      const int64_t pixels = block.pixels(), width = (panel_end - panel) * NR;
      T* buffer = direct ? nullptr : scratch.take<T>(pixels * width);

      const FusedEpilogue<T> fused{bias ? bias + panel * NR : nullptr, epilogue.activation, T(epilogue.slope)};

      // The runs of a patch that one output reads.
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

        const bool applies_epilogue = direct && cb == plan.channel_blocks - 1 && !fused.is_identity();
        // Computes all tiles of the block and stores them to the results that begin at `to`.
        const auto multiply_tiles = [&]<class Out>(Out* to) {
          GemmTile<E, Out> product{};
          product.offset = pieces.offset, product.runs = runs, product.length = plan.joined * channels;
          product.stream = stream && plan.channel_blocks == 1;
          product.fused = applies_epilogue ? &fused : nullptr;

          const int most = plan.small_k ? small_k_rows(NR) : NR == L ? max_rows<1> : max_rows<2>;
          const int64_t tiles = (pixels - 1) / most + 1;
          // A cursor over the pixels of the block: addresses in the source and in the result, and the strides of both
          // from column to column, row to row and image to image. set_rows advances it by one tile.
          const int64_t rows = block.p_end - block.p, cols = block.q_end - block.q;
          const int64_t out_w = direct ? conv.y.w : width, out_h = direct ? conv.y.h : cols * width,
                        out_n = direct ? conv.y.n : rows * out_h;
          const E* from = source;
          int64_t pixel = 0, cols_left = cols, rows_left = rows;
          const E* a[2][max_rows<1>];
          Out* out[2][max_rows<1>];
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
            // small_k_tile always reads the maximum number of rows.
            for (int m = MR; plan.small_k && m < most; ++m) a[tile % 2][m] = a[tile % 2][0];
            return MR;
          };
          int next = set_rows(0);
          for (int64_t tile = 0; tile < tiles; ++tile) {
            const int MR = next;
            next = tile + 1 < tiles ? set_rows(tile + 1) : 0;
            product.a = a[tile % 2], product.c = out[tile % 2];
            PrefetchRows<E> prefetch;
            if (next && in_place)
              prefetch = {a[(tile + 1) % 2], next, channels,
                          (panel_end - panel) * ((channels - 1) / steps_per_prefetch + 1)};
            product.prefetch = &prefetch;
            for (int64_t i = panel; i < panel_end; ++i) {
              const int64_t width = plan.lanes_of(i, K);
              product.lane = (i - panel) * NR;
              product.count = direct ? K - (i - group * plan.panels) * NR : width;
              product.b = packed + (i - first) * panel_size + cb * block_size;
              if constexpr (std::is_same_v<Out, T>) {
                const T* before[max_rows<1>];  // the accumulators of earlier channel blocks
                for (int m = 0; cb > 0 && m < MR; ++m) before[m] = product.c[m] + product.lane;
                product.from = cb > 0 ? before : nullptr;
                multiply_pieces(product, pieces, plan.small_k, width, MR);
              } else {
                multiply_panel(product, false, width, MR);  // bf16 pairs: a single channel block
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
      const bool whole = conv.y.h == Q * conv.y.w && block.q_end - block.q == Q;  // rows of y are contiguous
      const int64_t run = whole ? (block.p_end - block.p) * Q : block.q_end - block.q;
      for (int64_t i = block.n; i < block.n_end; ++i)
        for (int64_t j = block.p; j < block.p_end; j += whole ? P : 1, from += run * width)
          write_tile<S>(from, width,
                        {y + i * conv.y.n + (group * K + k) * conv.y.c + j * conv.y.h + block.q * conv.y.w, run, count,
                         conv.y.w, conv.y.c},
                        fused);
    });
  }
}

}  // namespace gemm
