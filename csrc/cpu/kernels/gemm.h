// gemm: forward and grad_input as an implicit matrix product, for any geometry. See docs/kernels.md.
//
// Lanes are output channels. The weights are packed once per call into panels of NR output channels. A task copies the
// input patch that its block of output pixels reads, and multiplies it with some panels. Each register tile has up to
// 14 pixels x 32 output channels, and the taps of a kernel row are one contiguous run of the patch. Where the output
// channels are too few to fill the lanes, lanes are the elements of such runs (micro/small_k.h, "small_k"); everything
// else stays the same.

namespace gemm {

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

template <class E, class S>
class BlockTask;

// A correlation with its packed bias and weights. The panels of all groups are computed in rounds, so that the packed
// weights stay below weights_bytes. If they are few, each worker packs them for itself when it needs them: that takes
// less time than reading what another core has just written.
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
  int64_t per_round;               // panels
  int64_t workers;                 // threads at most
  int64_t copies = 1;              // of the packed weights: 1, or one of each worker
  E* packed;                       // the panels of this round: [copy][panel][channel block][...]
  uint8_t* is_packed;              // [copy][panel]
  int64_t first = 0, end = 0;      // panels of this round

  // For `pixels` output pixels.
  PackedCorrelation(const Correlation& conv, const Plan<E, S>& plan, int64_t pixels, const S* x, const S* w, S* y,
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
    workers = thread_count();
    const int64_t bytes = per_round * std::max<int64_t>(1, panel_size) * int64_t(sizeof(E));
    if (per_round == panels() && workers <= Plan<E, S>::own_weights_bytes / bytes &&
        pixels >= Plan<E, S>::min_own_pixels * workers)
      copies = workers;
    packed = scratch.take<E>(copies * per_round * panel_size);
    is_packed = scratch.take<uint8_t>(copies * per_round);
  }

  int64_t panels() const { return conv.groups * plan.panels; }

  // The reduction is not cut into pieces for small_k, where each lane accumulates only a part of it, nor for bf16
  // pairs, whose results are rounded to bfloat16.
  int64_t longest_piece() const {
    return plan.small_k || per > 1 ? std::numeric_limits<int64_t>::max() : max_reduction;
  }

  // The packed weights of a panel, for a worker.
  E* packed_panel(int64_t panel, int64_t worker) const {
    return packed + ((copies > 1 ? worker * per_round : 0) + panel - first) * panel_size;
  }

  // Packs the panels that this worker's copy lacks.
  void pack_missing(const PanelRange& range, int64_t worker) const {
    if (copies == 1) return;
    for (int64_t panel = range.begin; panel < range.end; ++panel) {
      uint8_t& has = is_packed[worker * per_round + panel - first];
      for (int64_t block = 0; !has && block < plan.channel_blocks; ++block) pack(panel, block, worker);
      has = 1;
    }
  }

  // Packs channel block `block` of a panel.
  void pack(int64_t panel, int64_t block, int64_t worker) const {
    const int64_t c = block * plan.channels * per, channels = std::min(plan.channels * per, conv.C_per_group() - c);
    E* to = packed_panel(panel, worker) + block * block_size;
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

  // The number of sets that the panels of a group are split into, if there are `blocks` blocks of pixels. More sets
  // give more tasks. Each set copies the patch again, which takes as long as half a panel if it is transposed for a
  // single tap.
  int64_t sets_per_group(int64_t blocks) const {
    const auto sets = [&](int64_t tasks_per_thread) { return ceil_div(tasks_per_thread * thread_count(), blocks); };
    const int64_t panels_per_set = plan.in_place || conv.x.c == 1 ? 1 : ceil_div(4, taps);
    const int64_t wanted = std::min(sets(8), std::max(plan.panels / panels_per_set, sets(2)));
    return std::min(plan.panels, std::max(wanted, ceil_div(plan.panels, plan.panels_per_task)));
  }

  // Computes one round. Tasks: blocks of pixels x sets of panels. A set does not cross groups.
  template <class SomeBlocks>
  void run_round(int64_t first_panel, int64_t last_panel, const SomeBlocks& some) {
    first = first_panel;
    end = last_panel;
    if (copies > 1) {
      std::memset(is_packed, 0, copies * per_round);
    } else {
      parallel_for((end - first) * plan.channel_blocks, double(panel_size) / plan.channel_blocks,
                   [&](int64_t task) { pack(first + task / plan.channel_blocks, task % plan.channel_blocks, 0); });
    }

    const int64_t blocks = some.count(), first_group = first / plan.panels, last_group = (end - 1) / plan.panels;
    const int64_t groups = last_group - first_group + 1, sets = sets_per_group(blocks * groups);
    const double work = double(some.pixels()) * taps * conv.C_per_group() * NR * plan.panels / sets;
    parallel_for_workers(blocks * groups * sets, work, workers, [&](int64_t task, int64_t worker) {
      const int64_t set = task / blocks, group = first_group + set / sets, group_begin = group * plan.panels;
      const PanelRange range{.group = group,
                             .begin = std::max(first, group_begin + split_begin(plan.panels, sets, set % sets)),
                             .end = std::min(end, group_begin + split_begin(plan.panels, sets, set % sets + 1))};
      if (range.begin >= range.end) return;
      pack_missing(range, worker);
      BlockTask<E, S>(*this, some[task % blocks], range, worker).run();
    });
  }
};

// Multiplies one block of pixels with some panels.
template <class E, class S>
class BlockTask {
  using T = Acc<S>;
  static constexpr int per = values_per<E>;

 public:
  BlockTask(const PackedCorrelation<E, S>& call, const Block& block, const PanelRange& panels, int64_t worker)
      : call_(call),
        conv_(call.conv),
        plan_(call.plan),
        block_(block),
        panels_(panels),
        packed_(call.packed_panel(panels.begin, worker)),
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
      product.b = packed_ + (panel - panels_.begin) * call_.panel_size + channel_block * call_.block_size;
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
  const E* const packed_;  // the weights of these panels
  const int64_t k_;        // first output channel, in the group
  const int64_t width_;    // lanes of all panels
  const int64_t runs_;     // of a patch, under one output
  const Patch patch_;      // of a full channel block
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
  const int64_t pixels = conv.N * conv.rows.out * conv.cols.out;
  PackedCorrelation<E, S> call(conv, plan, pixels, x, w, y, epilogue, scratch);
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
  const int64_t pixels = 0;  // too few for each worker to pack all weights
  PackedCorrelation<E, S> call(conv, plan, pixels, x, w, y, epilogue, scratch);
  call.run(group * plan.panels, (group + 1) * plan.panels, ListOfBlocks{blocks});
}

}  // namespace gemm
