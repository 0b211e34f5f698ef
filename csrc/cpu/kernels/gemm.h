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
  static constexpr int64_t block_pixels = 16 * max_rows<2>;  // whole register tiles

  bool small_k = false;              // lanes are elements of runs (small_k_tile), not output channels
  int64_t lanes_per_panel;           // NR: output channels of a panel
  int64_t pitch;                     // elements of a patch from one pixel to the next
  int64_t joined = 1;                // neighbouring taps that form one contiguous run of a patch
  int64_t channels, channel_blocks;  // elements of a channel block, and number of blocks, of the reduction
  int64_t panels = 0;                // in a group
  int64_t panels_per_task = 0;
  bool in_place = false;  // x is read in place, without a patch
  bool direct = false;    // tiles are stored straight to y; otherwise to a staging buffer
  bool possible = false;
  Blocks<S> blocks;

  std::string describe() const {
    std::string text =
        "blocks of " + counted(blocks.pixels(), "pixel") + " and " + counted(channels * values_per<E>, "input channel");
    if (small_k) return text + ", lanes are elements of the reduction";
    text += ", panels of " + counted(lanes_per_panel, "output channel");
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
                C = ceil_div(conv.C_per_group(), values_per<E>);
  const int64_t P = conv.rows.out, Q = conv.cols.out, width = K <= L ? L : 2 * L;

  // Channels per block: as many as keep a panel below panel_bytes.
  const double most =
      std::min<double>(Plan::max_channels, double(Plan::panel_bytes) / size / width / std::max(1.0, double(taps)));
  int64_t channel_blocks = std::max<int64_t>(1, std::ceil(C / std::max(1.0, most)));
  const int64_t channels = ceil_div(C, channel_blocks);
  channel_blocks = ceil_div(C, channels);

  // Pixels per block: a multiple of the register tile.
  Plan plan{.lanes_per_panel = width,
            .pitch = channels,
            .channels = channels,
            .channel_blocks = channel_blocks,
            .blocks = Blocks<S>(conv, Plan::block_pixels, channels, Plan::patch_bytes)};
  // Pixels that are a multiple of 2 KiB apart fall into few sets of L1: a longer pitch spreads them.
  if (conv.cols.kernel <= 1 && channels * size % 2048 == 0) plan.pitch += L;
  if (conv.cols.dilation == 1) plan.joined = std::max<int64_t>(1, conv.cols.kernel);
  plan.small_k = !paired && K <= max_small_k<S> &&
                 K * (plan.small_k_fmas_per_pixel(taps) + lane_reduction_cost) < double(taps) * C;
  if (plan.small_k) plan.lanes_per_panel = K;
  const int64_t NR = plan.lanes_per_panel;
  plan.panels = ceil_div(K, NR);
  const double panel = double(plan.block_size(conv, channels)) * channel_blocks * size;
  plan.direct = conv.y.c == 1 && (plain || (paired && channel_blocks == 1));
  plan.possible = plan.blocks.patch_bytes <= 4.0 * Plan::patch_bytes && panel <= Plan::weights_bytes &&
                  double(conv.groups) * plan.panels * NR * size <= Plan::weights_bytes / 2;  // packed bias

  // x is not read in place if its pixels are a multiple of 4 KiB apart, where they fall into few sets of L1.
  constexpr int64_t page = 4096;
  const auto is_whole = [](int64_t count) { return count % values_per<E> == 0; };
  plan.in_place = (plain || paired) && taps == 1 && conv.x.c == 1 && conv.rows.pad == 0 && conv.cols.pad == 0 &&
                  conv.rows.position(P - 1, 0) < conv.rows.in && conv.cols.position(Q - 1, 0) < conv.cols.in &&
                  conv.x.w * conv.cols.stride * int64_t(sizeof(S)) % page != 0 && is_whole(conv.C_per_group()) &&
                  is_whole(conv.x.n) && is_whole(conv.x.h) && is_whole(conv.x.w);

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
    product.offset = whole.offset + first;
    product.runs = runs;
    product.length = length;
    product.b = whole.b + steps_before * width;
    product.c = last ? whole.c : waiting;
    product.lane = last ? whole.lane : 0;
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

// Panels [begin, end) of one group, counted over all groups.
struct PanelRange {
  int64_t group, begin, end;
};

// The pixels of x that a block of outputs reads: in a patch, or in x itself. Strides are in elements E.
template <class E>
struct SourceView {
  const E* data;                                   // the pixel under the first tap of the first output
  int64_t image_stride, row_stride, col_stride;    // from one output to the next
  int64_t tap_row_stride = 0, tap_col_stride = 0;  // from one tap to the next
};

// One register tile: the address of each of its pixels in the source and in the result.
template <class E, class Out>
struct TileRows {
  const E* a[max_rows<1>];
  Out* c[max_rows<1>];
  int count = 0;
};

// Walks over the pixels of a block in the source and in the result at once. Strides of the result are in elements Out.
template <class E, class Out>
class TileCursor {
 public:
  TileCursor(const Block& block, const SourceView<E>& from, Out* to, int64_t image_stride, int64_t row_stride,
             int64_t col_stride)
      : rows_(block.p_end - block.p),
        cols_(block.q_end - block.q),
        rows_left_(rows_),
        cols_left_(cols_),
        a_(from.data),
        a_col_(from.col_stride),
        a_row_(from.row_stride - cols_ * from.col_stride),
        a_image_(from.image_stride - rows_ * from.row_stride),
        c_(to),
        c_col_(col_stride),
        c_row_(row_stride - cols_ * col_stride),
        c_image_(image_stride - rows_ * row_stride) {}

  // Lists the next `count` pixels.
  INLINE void next(int count, TileRows<E, Out>& tile) {
    tile.count = count;
    for (int m = 0; m < count; ++m) {
      tile.a[m] = a_;
      tile.c[m] = c_;
      a_ += a_col_;
      c_ += c_col_;
      if (--cols_left_ > 0) continue;
      cols_left_ = cols_;
      a_ += a_row_;
      c_ += c_row_;
      if (--rows_left_ > 0) continue;
      rows_left_ = rows_;
      a_ += a_image_;
      c_ += c_image_;
    }
  }

 private:
  int64_t rows_, cols_, rows_left_, cols_left_;
  const E* a_;
  int64_t a_col_, a_row_, a_image_;  // to the next column; from there to the next row; from there to the next image
  Out* c_;
  int64_t c_col_, c_row_, c_image_;
};

template <class E, class S>
class BlockTask;

// A correlation with its packed bias and weights. The panels of all groups are computed in rounds, so that the packed
// weights stay below weights_bytes.
template <class E, class S>
struct PackedCorrelation {
  using T = Acc<S>;
  static constexpr int per = values_per<E>;

  const Correlation& conv;
  const Plan<E, S>& plan;
  const S *x, *w;
  S* y;
  int64_t taps, K, NR;
  int64_t block_size, panel_size;  // packed elements of a channel block of a panel, and of a panel
  bool stream;                     // non-temporal stores to y
  PackedEpilogue<S> epilogue;      // [group][panel][lane]
  E* packed;                       // the panels of this round: [panel][channel block][...]
  int64_t per_round;               // panels
  int64_t first = 0, end = 0;      // panels of this round

  PackedCorrelation(const Correlation& conv, const Plan<E, S>& plan, const S* x, const S* w, S* y,
                    const Epilogue& epilogue, Scratch& scratch)
      : conv(conv),
        plan(plan),
        x(x),
        w(w),
        y(y),
        taps(conv.rows.kernel * conv.cols.kernel),
        K(conv.K_per_group()),
        NR(plan.lanes_per_panel),
        block_size(plan.block_size(conv, plan.channels)),
        panel_size(block_size * plan.channel_blocks),
        stream(plan.direct && streams(conv, y, K)),
        epilogue(epilogue, conv.K, K, plan.panels * NR, scratch) {
    const int64_t fitting = Plan<E, S>::weights_bytes / int64_t(sizeof(E)) / std::max<int64_t>(1, panel_size);
    per_round = std::clamp<int64_t>(fitting, 1, panels());
    packed = scratch.take<E>(per_round * panel_size);
  }

  int64_t panels() const { return conv.groups * plan.panels; }

  // The reduction is not cut into pieces for small_k, where each lane accumulates only a part of it, nor for bf16
  // pairs, whose results are rounded to bfloat16.
  int64_t longest_piece() const {
    return plan.small_k || per > 1 ? std::numeric_limits<int64_t>::max() : max_reduction;
  }

  // Packs channel block `block` of a panel.
  void pack(int64_t panel, int64_t block) const {
    const int64_t c = block * plan.channels * per, channels = std::min(plan.channels * per, conv.C_per_group() - c);
    E* to = packed + (panel - first) * panel_size + block * block_size;
    if constexpr (per == 1)
      if (plan.small_k) return pack_small_k(conv, w, panel, plan.joined, c, channels, to);
    pack_weights(conv, w, panel / plan.panels, panel % plan.panels * NR, plan.lanes_of(panel, K), c, channels, to);
  }

  // Computes panels [first_panel, last_panel) of `blocks`, in rounds.
  template <class SomeBlocks>
  void run(int64_t first_panel, int64_t last_panel, const SomeBlocks& blocks) {
    for (; first_panel < last_panel; first_panel += per_round)
      run_round(first_panel, std::min(first_panel + per_round, last_panel), blocks);
  }

  // Computes one round. Tasks: blocks of pixels x sets of panels. A set does not cross groups.
  template <class SomeBlocks>
  void run_round(int64_t first_panel, int64_t last_panel, const SomeBlocks& some) {
    first = first_panel;
    end = last_panel;
    parallel_for((end - first) * plan.channel_blocks, double(panel_size) / plan.channel_blocks,
                 [&](int64_t task) { pack(first + task / plan.channel_blocks, task % plan.channel_blocks); });

    const int64_t blocks = some.count();
    int64_t per_task = plan.panels_per_task;
    while (per_task > 1 && blocks * ((end - first) / per_task) < 8 * thread_count()) per_task = (per_task + 1) / 2;
    const int64_t sets_per_group = ceil_div(plan.panels, per_task);
    const int64_t first_group = first / plan.panels, last_group = (end - 1) / plan.panels;
    const int64_t sets = (last_group - first_group + 1) * sets_per_group;
    const double work = double(some.pixels()) * taps * conv.C_per_group() * per_task * NR;
    parallel_for(blocks * sets, work, [&](int64_t task) {
      const int64_t set = task / blocks, group = first_group + set / sets_per_group;
      const int64_t group_begin = group * plan.panels, set_begin = group_begin + set % sets_per_group * per_task;
      const PanelRange range{.group = group,
                             .begin = std::max(first, set_begin),
                             .end = std::min({end, group_begin + plan.panels, set_begin + per_task})};
      if (range.begin < range.end) BlockTask<E, S>(*this, some[task % blocks], range).run();
    });
  }
};

// Multiplies one block of pixels with some panels.
template <class E, class S>
class BlockTask {
  using T = Acc<S>;
  static constexpr int per = values_per<E>;

 public:
  BlockTask(const PackedCorrelation<E, S>& call, const Block& block, const PanelRange& panels)
      : call_(call),
        conv_(call.conv),
        plan_(call.plan),
        block_(block),
        panels_(panels),
        k_((panels.begin - panels.group * plan_.panels) * call.NR),
        width_((panels.end - panels.begin) * call.NR),
        runs_(call.taps / plan_.joined),
        patch_(conv_, block, plan_.pitch),
        copy_(plan_.in_place ? nullptr : scratch_.take<E>((block.n_end - block.n) * patch_.image_pitch())),
        buffer_(plan_.direct ? nullptr : scratch_.take<T>(block.pixels() * width_)),
        pieces_(call.longest_piece(), runs_, plan_.joined * plan_.channels, scratch_),
        fused_(call.epilogue.at(panels.begin * call.NR)) {}

  void run() {
    for (int64_t channel_block = 0; channel_block < plan_.channel_blocks; ++channel_block) {
      const int64_t c = channel_block * plan_.channels * per,
                    count = std::min(plan_.channels * per, conv_.C_per_group() - c);
      const int64_t channels = ceil_div(count, per);
      const SourceView<E> source = plan_.in_place ? view_of_x(c) : fill_patch(c, count, channels);
      pieces_.set(runs_, plan_.joined * channels, [&](int64_t run) {
        const int64_t tap = run * plan_.joined;
        return tap / conv_.cols.kernel * source.tap_row_stride + tap % conv_.cols.kernel * source.tap_col_stride;
      });
      if (!plan_.direct) {
        multiply_tiles(channel_block, channels, source, buffer_);
      } else if constexpr (std::is_same_v<S, E> || per > 1) {
        multiply_tiles(channel_block, channels, source,
                       call_.y + block_.n * conv_.y.n + block_.p * conv_.y.h + block_.q * conv_.y.w +
                           panels_.group * call_.K + k_);
      }
    }
    if (call_.stream) finish_streams();
    if (!plan_.direct) store_buffer();
  }

 private:
  // x in place, from channel c of the group.
  SourceView<E> view_of_x(int64_t c) const {
    const S* corner = call_.x + block_.n * conv_.x.n + (panels_.group * conv_.C_per_group() + c) * conv_.x.c +
                      conv_.rows.position(block_.p, 0) * conv_.x.h + conv_.cols.position(block_.q, 0) * conv_.x.w;
    return {.data = reinterpret_cast<const E*>(corner),
            .image_stride = conv_.x.n / per,
            .row_stride = conv_.rows.stride * conv_.x.h / per,
            .col_stride = conv_.cols.stride * conv_.x.w / per};
  }

  // Copies `count` channels of x from channel c of the group, as `channels` elements, to the patch.
  SourceView<E> fill_patch(int64_t c, int64_t count, int64_t channels) {
    Patch patch = patch_;
    patch.pitch = plan_.pitch - plan_.channels + channels;
    read_patch(conv_, block_, patch, panels_.group * conv_.C_per_group() + c, count, call_.x, copy_);
    return {.data = copy_,
            .image_stride = patch.image_pitch(),
            .row_stride = patch.rows.step * patch.row_pitch(),
            .col_stride = patch.cols.step * patch.pitch,
            .tap_row_stride = conv_.rows.dilation * patch.row_pitch(),
            .tap_col_stride = conv_.cols.dilation * patch.pitch};
  }

  // Computes all tiles of the block for one channel block, and stores or accumulates them from `to` on.
  template <class Out>
  void multiply_tiles(int64_t channel_block, int64_t channels, const SourceView<E>& source, Out* to) {
    const int64_t cols = block_.q_end - block_.q, rows = block_.p_end - block_.p;
    const int most = plan_.small_k ? small_k_rows(call_.NR) : call_.NR == lanes<S> ? max_rows<1> : max_rows<2>;
    const int64_t pixels = block_.pixels(), tiles = ceil_div(pixels, most);
    const auto rows_of = [&](int64_t tile) {
      return int(split_begin(pixels, tiles, tile + 1) - split_begin(pixels, tiles, tile));
    };
    TileCursor<E, Out> cursor(block_, source, to, plan_.direct ? conv_.y.n : rows * cols * width_,
                              plan_.direct ? conv_.y.h : cols * width_, plan_.direct ? conv_.y.w : width_);

    GemmTile<E, Out> product{};
    product.offset = pieces_.offset;
    product.runs = runs_;
    product.length = plan_.joined * channels;
    product.stream = call_.stream && plan_.channel_blocks == 1;
    const bool last = channel_block == plan_.channel_blocks - 1;
    product.fused = plan_.direct && last && !fused_.is_identity() ? &fused_ : nullptr;

    TileRows<E, Out> tile[2];  // this one and the next
    cursor.next(rows_of(0), tile[0]);
    for (int64_t i = 0; i < tiles; ++i) {
      TileRows<E, Out>&current = tile[i % 2], &next = tile[(i + 1) % 2];
      next.count = 0;
      if (i + 1 < tiles) cursor.next(rows_of(i + 1), next);
      // small_k_tile always reads the maximum number of rows.
      for (int m = current.count; plan_.small_k && m < most; ++m) current.a[m] = current.a[0];
      PrefetchRows<E> prefetch;
      if (next.count > 0 && plan_.in_place)
        prefetch = {next.a, next.count, channels,
                    (panels_.end - panels_.begin) * ceil_div(channels, steps_per_prefetch)};
      product.prefetch = &prefetch;
      multiply_panels(product, current, channel_block);
    }
  }

  // Multiplies one tile with all panels of the task.
  template <class Out>
  INLINE void multiply_panels(GemmTile<E, Out>& product, const TileRows<E, Out>& tile, int64_t channel_block) {
    product.a = tile.a;
    product.c = tile.c;
    for (int64_t panel = panels_.begin; panel < panels_.end; ++panel) {
      const int64_t lanes_of_panel = plan_.lanes_of(panel, call_.K);
      product.lane = (panel - panels_.begin) * call_.NR;
      product.count = plan_.direct ? call_.K - (panel - panels_.group * plan_.panels) * call_.NR : lanes_of_panel;
      product.b = call_.packed + (panel - call_.first) * call_.panel_size + channel_block * call_.block_size;
      if constexpr (std::is_same_v<Out, T>) {
        const T* before[max_rows<1>];  // the accumulators of earlier channel blocks
        for (int m = 0; channel_block > 0 && m < tile.count; ++m) before[m] = product.c[m] + product.lane;
        product.from = channel_block > 0 ? before : nullptr;
        multiply_pieces(product, pieces_, plan_.small_k, lanes_of_panel, tile.count);
      } else {
        multiply_panel(product, false, lanes_of_panel, tile.count);  // bf16 pairs: a single channel block
      }
    }
  }

  // Stores the staging buffer, [pixel][lane], to y.
  void store_buffer() const {
    const int64_t count = std::min(width_, call_.K - k_), rows = block_.p_end - block_.p,
                  cols = block_.q_end - block_.q;
    const bool rows_are_contiguous = conv_.y.h == conv_.cols.out * conv_.y.w && cols == conv_.cols.out;
    const int64_t at_once = rows_are_contiguous ? rows : 1;  // rows
    const T* from = buffer_;
    for (int64_t n = block_.n; n < block_.n_end; ++n)
      for (int64_t p = block_.p; p < block_.p_end; p += at_once, from += at_once * cols * width_) {
        S* corner =
            call_.y + n * conv_.y.n + (panels_.group * call_.K + k_) * conv_.y.c + p * conv_.y.h + block_.q * conv_.y.w;
        write_tile<S>(from, width_, {corner, at_once * cols, count, conv_.y.w, conv_.y.c}, fused_);
      }
  }

  const PackedCorrelation<E, S>& call_;
  const Correlation& conv_;
  const Plan<E, S>& plan_;
  const Block block_;
  const PanelRange panels_;
  const int64_t k_;      // first output channel, in the group
  const int64_t width_;  // lanes of all panels
  const int64_t runs_;   // of a patch, under one output
  const Patch patch_;    // of a full channel block
  Scratch scratch_;
  E* const copy_;    // the patch; null if x is read in place
  T* const buffer_;  // the staging buffer, [pixel][lane]; null if results are stored straight to y
  Pieces pieces_;
  const FusedEpilogue<T> fused_;
};

// Computes one correlation: y = activation(correlation of x and w + bias).
template <class E, class S>
void correlate(const Correlation& conv, const Plan<E, S>& plan, const S* x, const S* w, S* y,
               const Epilogue& epilogue) {
  if (conv.rows.kernel * conv.cols.kernel == 0) return write_zeros(conv, y);
  Scratch scratch;
  PackedCorrelation<E, S> call(conv, plan, x, w, y, epilogue, scratch);
  call.run(0, call.panels(), plan.blocks);
}

// Small blocks: about as large as those of a plan, or smaller.
struct ListOfBlocks {
  std::span<const Block> blocks;

  int64_t count() const { return blocks.size(); }
  int64_t pixels() const { return blocks.front().pixels(); }
  const Block& operator[](int64_t i) const { return blocks[i]; }
};

// Computes some blocks of one group of a correlation. Each output has the bits that `correlate` gives it.
template <class E, class S>
void correlate_blocks(const Correlation& conv, const Plan<E, S>& plan, int64_t group, std::span<const Block> blocks,
                      const S* x, const S* w, S* y, const Epilogue& epilogue) {
  Scratch scratch;
  PackedCorrelation<E, S> call(conv, plan, x, w, y, epilogue, scratch);
  call.run(group * plan.panels, (group + 1) * plan.panels, ListOfBlocks{blocks});
}

}  // namespace gemm
