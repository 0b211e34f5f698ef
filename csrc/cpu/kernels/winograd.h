// winograd: forward and grad_input of 3x3 kernels with stride 1, with 36 multiplications for 16 outputs where direct
// convolution has 144. See docs/kernels.md.
//
// F(4x4, 3x3) of Lavin and Gray (arXiv:1509.09308) with the points {0, +-3/4, +-3/2, infinity}. All constants of the
// input and output transforms are exact in binary, and the error is half of that of the points {0, +-1, +-2, infinity}.
//
//   V[plane] = (B^T d B)   6x6 inputs of a tile       [plane][tile][channel]
//   U[plane] = (G g G^T)   3x3 taps                   [plane][channel][lane: output channel]
//   M[plane] = V U         36 small matrix products   [plane][tile][lane]
//   y        = (A^T M A)   4x4 outputs of the tile

namespace winograd {

// M = V U over `channels` input channels, or M += V U if `add`. Calls `meanwhile`, which prefetches, once per plane.
template <class T, class Meanwhile>
void multiply_planes(const PlaneStack<T>& v, const PlaneStack<T>& u, const PlaneStack<T>& m, int64_t tiles,
                     int64_t channels, bool add, Meanwhile& meanwhile) {
  const bool wide = m.pitch > Simd<T>::lanes;
  const int64_t no_offset = 0, parts = ceil_div(tiles, wide ? max_rows<2> : max_rows<1>);
  GemmTile<T> product{};
  product.offset = &no_offset;
  product.runs = 1;
  product.count = m.pitch;
  for (int64_t plane = 0; plane < planes; ++plane) {
    meanwhile();
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = split_begin(tiles, parts, part), MR = split_begin(tiles, parts, part + 1) - begin;
      const T* a[max_rows<1>];
      T* c[max_rows<1>];
      for (int64_t i = 0; i < MR; ++i) {
        a[i] = v.row(plane, begin + i);
        c[i] = m.row(plane, begin + i);
      }
      // Prefetches the rows of the next product, which follow these.
      const T* next = a[0] + MR * v.pitch;
      PrefetchRows<T> prefetch;
      if (v.pitch == channels) prefetch = {&next, 1, MR * channels, ceil_div(channels, steps_per_prefetch)};
      product.a = a;
      product.c = c;
      product.prefetch = &prefetch;
      for (int64_t k = 0; k < channels; k += max_reduction) {
        product.length = std::min(max_reduction, channels - k);
        product.b = u.row(plane, k);
        product.from = add || k > 0 ? c : nullptr;
        if (wide) {
          GemmTiles<T, 2>::by_rows[MR - 1](product);
        } else {
          GemmTiles<T, 1>::by_rows[MR - 1](product);
        }
        for (int64_t i = 0; i < MR; ++i) a[i] += product.length;
      }
    }
  }
}

// Sizes that fit the caches.
constexpr int64_t own_v_bytes = 384 << 10;   // V of one task, in L2
constexpr int64_t shared_u_bytes = 3 << 20;  // U, computed once and read by all tasks, from L3
constexpr int64_t own_u_bytes = 8 << 20;     // U of all workers, if each computes it
constexpr int64_t min_own_u_tiles = 8;       // of a worker, below which that takes too much of its time
constexpr int64_t max_own_v_channels = 768;  // maximum input channels of a group for which tasks have their own V
constexpr int64_t large_v_bytes = 6 << 20;   // V of many tiles, read panel by panel, from L3
constexpr int64_t all_v_bytes = 32 << 20;    // of all workers, if each computes V of its own tiles
constexpr int64_t max_large_v_tiles = 112;   // tiles of M, beside U of a channel block, in L2
constexpr int64_t min_large_v_tiles = 56;    // of these, below which workers spend too much of their time on U
constexpr int64_t min_own_tiles = 96;        // of a worker, below which there is too little to divide evenly
constexpr int64_t tiles_per_u = 12;          // tiles that take as long to multiply as a panel of U to compute
constexpr int64_t channels_per_block = 64;   // of a channel block
static_assert(own_u_bytes + own_v_bytes < scratch_per_thread && large_v_bytes < scratch_per_thread);

// One axis of a phase of a dilated correlation. Outputs `dilation` apart read inputs that are `dilation` apart. Outputs
// offset, offset + dilation, ... are therefore a correlation without dilation of inputs first, first + dilation, ...
struct SparsePhase {
  Axis axis;
  int64_t first;

  SparsePhase(const Axis& dilated, int64_t offset) : axis(dilated) {
    const int64_t D = dilated.dilation, position = dilated.position(offset, 0);
    axis.pad = position >= 0 ? -(position / D) : ceil_div(-position, D);
    first = position + axis.pad * D;
    axis.in = dilated.in > first ? ceil_div(dilated.in - first, D) : 0;
    axis.out = ceil_div(dilated.out - offset, D);
    axis.dilation = 1;
  }
};

// Output channels of a panel of U.
template <class S>
int64_t lanes_per_panel(const Conv& conv) {
  return conv.K_per_group() <= lanes<S> ? lanes<S> : 2 * lanes<S>;
}

// The number of groups that correlate_own_v computes at once: those whose U fits into shared_u_bytes. 0 if it supports
// none, and correlate_large_v computes them.
template <class S>
int64_t groups_together(const Conv& conv) {
  using T = Acc<S>;
  const int64_t C = conv.C_per_group(), NR = lanes_per_panel<S>(conv);
  const int64_t u_bytes = ceil_div(conv.K_per_group(), NR) * PlaneStack<T>::size(C, NR) * int64_t(sizeof(T));
  return C <= max_own_v_channels ? shared_u_bytes / u_bytes : 0;
}

// The output channels of a correlation, in panels: the bias, and the outputs of a panel.
template <class S>
struct OutputPanels {
  using T = Acc<S>;

  const Correlation& conv;
  int64_t C, K, NR, panels;          // of a group: input and output channels, lanes of a panel, panels
  const PackedEpilogue<S> epilogue;  // [group][panel][lane]
  const Guard<S> guard;

  OutputPanels(const Correlation& conv, const Epilogue& epilogue, Scratch& scratch)
      : conv(conv),
        C(conv.C_per_group()),
        K(conv.K_per_group()),
        NR(lanes_per_panel<S>(conv)),
        panels(ceil_div(K, NR)),
        epilogue(epilogue, conv.K, K, panels * NR, scratch),
        guard(conv, groups_together<S>(conv) > 0, scratch) {}

  // Show the guard what is transformed.
  auto inspect_inputs(int64_t group) const {
    return [this, group](const Tiles& line, const LinePatch<T>& patch) { guard.check(group, line, patch); };
  }
  auto inspect_weights() const {
    return [this](Magnitude<T> largest) { guard.check_weights(largest); };
  }

  // Multiplications of one tile and one panel.
  double products() const { return double(planes) * C * NR; }

  // Output channels of a panel.
  int64_t channels(int64_t panel) const { return std::min(NR, K - panel * NR); }

  // Prefetches the outputs of some tiles and a panel for writing, in one call per plane.
  PrefetchPixels<S, true> prefetch(const Tiles& tiles, int64_t group, int64_t panel, S* y) const {
    return {outputs(conv, tiles, group * K + panel * NR, y), 0, channels(panel), planes};
  }

  // Transforms M of some tiles and a panel, applies the epilogue and stores the outputs.
  void write(const Tiles& tiles, const PlaneStack<T>& m, int64_t group, int64_t panel, S* y) const {
    write_outputs(conv, tiles, m, group * K + panel * NR, channels(panel), y,
                  epilogue.at((group * panels + panel) * NR));
  }
};

// U of some groups, [group][panel]. If few, each worker computes it for itself when it meets a group: that takes less
// time than reading what another core has just written. Otherwise it is computed once, by all.
template <class S>
class GroupWeights {
  using T = Acc<S>;

 public:
  // For groups [begin, end), of `tiles` tiles each.
  GroupWeights(const OutputPanels<S>& output, int64_t begin, int64_t end, int64_t tiles, const S* w, Scratch& scratch)
      : output_(output),
        begin_(begin),
        groups_(end - begin),
        w_(w),
        workers_(thread_count()),
        copies_(is_own(tiles) ? workers_ : 1),
        u_(output.C, output.NR, scratch, copies_ * stacks()),
        has_(scratch.take<uint8_t>(copies_ * groups_)) {
    std::memset(has_, 0, copies_ * groups_);
    if (copies_ > 1) return;
    parallel_for(stacks(), 2 * output.products(), [&](int64_t task) { make(task, task); });
  }

  int64_t workers() const { return workers_; }

  // U of a group, counted from the first, for a worker.
  PlaneStack<T> of(int64_t group, int64_t worker) const {
    const int64_t first = group * output_.panels;
    if (copies_ == 1) return u_.stack(first);
    uint8_t& has = has_[worker * groups_ + group];
    for (int64_t panel = 0; !has && panel < output_.panels; ++panel)
      make(first + panel, worker * stacks() + first + panel);
    has = 1;
    return u_.stack(worker * stacks() + first);
  }

 private:
  int64_t stacks() const { return groups_ * output_.panels; }

  bool is_own(int64_t tiles) const {
    const int64_t stack = PlaneStack<T>::size(output_.C, output_.NR) * int64_t(sizeof(T));
    return workers_ > 1 && workers_ <= own_u_bytes / (stacks() * stack) &&
           tiles * groups_ >= min_own_u_tiles * workers_;
  }

  void make(int64_t task, int64_t stack) const {
    make_u(output_.conv, w_, begin_ + task / output_.panels, task % output_.panels * output_.NR, output_.NR, 0,
           output_.C, u_.stack(stack), output_.inspect_weights());
  }

  const OutputPanels<S>& output_;
  const int64_t begin_, groups_;
  const S* const w_;
  const int64_t workers_, copies_;
  const PlaneStack<T> u_;
  uint8_t* const has_;  // [copy][group]
};

// For few weights: each task computes and keeps V of a few tiles. For groups [begin, end).
template <class S>
void correlate_own_v(const OutputPanels<S>& output, int64_t begin, int64_t end, const S* x, const S* w, S* y) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const Correlation& conv = output.conv;
  const int64_t C = output.C, NR = output.NR, panels = output.panels, groups = end - begin;
  const int64_t most = NR > L ? 2 * max_rows<2> : 2 * max_rows<1>;
  const TileBlocks blocks(conv, std::clamp<int64_t>(own_v_bytes / int64_t(sizeof(T)) / planes / C, 1, most));
  Scratch scratch;
  const GroupWeights<S> weights(output, begin, end, conv.N * blocks.tile_rows * blocks.tile_cols, w, scratch);
  if (output.guard.weights_out_of_range()) return;
  // With many threads, tasks get fewer panels, although V of the same tiles is then computed several times.
  const int64_t all_blocks = blocks.count() * groups;
  int64_t per_task = panels;
  while (per_task > 1 && all_blocks * ceil_div(panels, per_task) < thread_count()) per_task = ceil_div(per_task, 2);
  const int64_t sets = ceil_div(panels, per_task);
  const double work = output.products() * per_task * blocks.images * blocks.rows * blocks.cols;
  parallel_for_workers(all_blocks * sets, work, weights.workers(), [&](int64_t task, int64_t worker) {
    const int64_t first = task % sets * per_task, block = task / sets;
    const Tiles tiles = blocks[block % blocks.count()];
    const int64_t group = block / blocks.count();  // counted from `begin`
    Scratch scratch;
    const PlaneStack<T> v(tiles.count(), round_up(C, L), scratch), m(tiles.count(), NR, scratch);
    make_v(conv, tiles, (begin + group) * C, C, x, v, output.inspect_inputs(begin + group));
    const PlaneStack<T> u = weights.of(group, worker);  // also shows all weights to the guard
    if (output.guard.are_outliers(begin + group, tiles)) return;
    for (int64_t panel = first; panel < std::min(first + per_task, panels); ++panel) {
      auto prefetch = output.prefetch(tiles, begin + group, panel, y);
      multiply_planes(v, u.stack(panel), m, tiles.count(), C, false, prefetch);
      output.write(tiles, m, begin + group, panel, y);
    }
  });
}

// Some of the images of a block of tiles, or some of the rows of its only image: lines [begin, end).
struct TileLines {
  static int64_t count(const Tiles& tiles) { return tiles.images > 1 ? tiles.images : tiles.rows; }

  Tiles tiles;
  int64_t first_tile;  // in the block

  TileLines(const Tiles& block, int64_t begin, int64_t end)
      : tiles(block), first_tile(block.count() / count(block) * begin) {
    int64_t& line = block.images > 1 ? tiles.n : tiles.row;
    int64_t& lines = block.images > 1 ? tiles.images : tiles.rows;
    line += begin;
    lines = end - begin;
  }
};

// V of some tiles, a stack for each channel block.
template <class S>
struct LargeV {
  const OutputPanels<S>& output;
  const Tiles& tiles;
  int64_t group;
  const S* x;
  PlaneStack<Acc<S>> v;

  int64_t count() const { return tiles.images * tiles.rows * ceil_div(output.C, channels_per_block); }

  // Computes part i of count(): a channel block of a row of tiles.
  void make(int64_t i) const {
    const int64_t channel_blocks = ceil_div(output.C, channels_per_block), row = i / channel_blocks,
                  block = i % channel_blocks, c = block * channels_per_block;
    make_v(output.conv, tiles.only_row(row), group * output.C + c, std::min(channels_per_block, output.C - c), x,
           v.stack(block).part(row * tiles.cols, 0), output.inspect_inputs(group));
  }
};

// Computes the outputs of some tiles and a panel. `v` begins at the first of these tiles.
template <class S>
void correlate_panel(const OutputPanels<S>& output, const Tiles& tiles, int64_t group, int64_t panel, const S* w,
                     const PlaneStack<Acc<S>>& v, S* y) {
  using T = Acc<S>;
  const int64_t C = output.C, NR = output.NR, channel_blocks = ceil_div(C, channels_per_block);
  Scratch scratch;
  const PlaneStack<T> u(channels_per_block, NR, scratch), m(tiles.count(), NR, scratch);
  auto prefetch = output.prefetch(tiles, group, panel, y);
  const auto no_prefetch = [] {};
  for (int64_t block = 0; block < channel_blocks; ++block) {
    const int64_t c = block * channels_per_block, channels = std::min(channels_per_block, C - c);
    make_u(output.conv, w, group, panel * NR, NR, c, channels, u, output.inspect_weights());
    const bool add = block > 0;
    if (block + 1 < channel_blocks) {
      multiply_planes(v.stack(block), u, m, tiles.count(), channels, add, no_prefetch);
    } else {
      multiply_planes(v.stack(block), u, m, tiles.count(), channels, add, prefetch);
    }
  }
  output.write(tiles, m, group, panel, y);
}

// For many weights, which are transformed panel by panel, one block of input channels after the other, for many tiles
// at once: how these are cut into blocks. If there are enough, each worker computes V of its own blocks: that takes
// less time than reading what another core has just written. Otherwise all workers share V of one block after the
// other.
struct LargeBlocks {
  TileBlocks blocks;
  bool own;

  template <class S>
  static LargeBlocks of(const OutputPanels<S>& output) {
    const int64_t tile_bytes = planes * output.C * int64_t(sizeof(Acc<S>)), workers = thread_count();
    const auto fitting = [&](int64_t bytes) { return std::clamp<int64_t>(bytes / tile_bytes, 1, max_large_v_tiles); };
    const TileBlocks shared(output.conv, fitting(large_v_bytes));
    const int64_t most = fitting(std::min(large_v_bytes, all_v_bytes / workers));
    const int64_t tiles = ceil_div(output.conv.N * shared.tile_rows * shared.tile_cols, workers);  // of a worker
    if (workers == 1 || most < min_large_v_tiles || tiles < min_own_tiles) return {shared, false};
    // The fewest blocks of a worker, or one more, if that divides the work better.
    const auto cut = [&](int64_t count) { return TileBlocks(output.conv, ceil_div(tiles, count)); };
    const auto time = [&](const TileBlocks& blocks) {
      return ceil_div(blocks.count(), workers) * (blocks.max_tiles() + tiles_per_u);
    };
    const int64_t fewest = ceil_div(tiles, most);
    const TileBlocks few = cut(fewest), more = cut(fewest + 1);
    return {time(more) < time(few) ? more : few, true};
  }
};

template <class S>
void correlate_large_v(const OutputPanels<S>& output, int64_t group, const S* x, const S* w, S* y) {
  const LargeBlocks cut = LargeBlocks::of(output);
  const TileBlocks& blocks = cut.blocks;
  const int64_t panels = output.panels, stacks = ceil_div(output.C, channels_per_block);
  if (cut.own) {
    const double work = output.products() * panels * blocks.max_tiles();
    parallel_for(blocks.count(), work, [&](int64_t task) {
      const Tiles tiles = blocks[task];
      Scratch scratch;
      const LargeV<S> v{output, tiles, group, x, {tiles.count(), channels_per_block, scratch, stacks}};
      for (int64_t i = 0; i < v.count(); ++i) v.make(i);
      for (int64_t panel = 0; panel < panels; ++panel) correlate_panel(output, tiles, group, panel, w, v.v, y);
    });
    return;
  }
  for (int64_t block = 0; block < blocks.count(); ++block) {
    const Tiles tiles = blocks[block];
    Scratch scratch;
    const LargeV<S> v{output, tiles, group, x, {tiles.count(), channels_per_block, scratch, stacks}};
    parallel_for(v.count(), double(planes) * 16 * tiles.cols * channels_per_block, [&](int64_t i) { v.make(i); });
    // With many threads, tasks get fewer tiles (some of the images, or else some of the rows), although U of the same
    // output channels is then computed several times.
    const int64_t lines = TileLines::count(tiles);
    const int64_t parts = std::clamp<int64_t>(ceil_div(thread_count(), panels), 1, lines);
    parallel_for(panels * parts, output.products() * tiles.count() / parts, [&](int64_t task) {
      const int64_t panel = task % panels, part = task / panels;
      const TileLines some(tiles, split_begin(lines, parts, part), split_begin(lines, parts, part + 1));
      correlate_panel(output, some.tiles, group, panel, w, v.v.part(some.first_tile, 0), y);
    });
  }
}

template <class S>
void correlate(const Correlation& conv, const S* x, const S* w, S* y, const Epilogue& epilogue);

// Computes a dilated correlation, phase by phase.
template <class S>
void correlate_dilated(const Correlation& conv, const S* x, const S* w, S* y, const Epilogue& epilogue) {
  Correlation phase = conv;
  phase.x.h *= conv.rows.dilation;
  phase.x.w *= conv.cols.dilation;
  phase.y.h *= conv.rows.dilation;
  phase.y.w *= conv.cols.dilation;
  for (int64_t i = 0; i < std::min(conv.rows.dilation, conv.rows.out); ++i)
    for (int64_t j = 0; j < std::min(conv.cols.dilation, conv.cols.out); ++j) {
      const SparsePhase rows(conv.rows, i), cols(conv.cols, j);
      phase.rows = rows.axis;
      phase.cols = cols.axis;
      correlate(phase, x + rows.first * conv.x.h + cols.first * conv.x.w, w, y + i * conv.y.h + j * conv.y.w, epilogue);
    }
}

// Computes one correlation: phase by phase if it is dilated, else group by group or several groups at once.
template <class S>
void correlate(const Correlation& conv, const S* x, const S* w, S* y, const Epilogue& epilogue) {
  if (conv.rows.dilation > 1 || conv.cols.dilation > 1) return correlate_dilated(conv, x, w, y, epilogue);
  Scratch scratch;
  const OutputPanels<S> output(conv, epilogue, scratch);
  if (const int64_t together = groups_together<S>(conv); together > 0) {
    for (int64_t group = 0; group < conv.groups; group += together)
      correlate_own_v(output, group, std::min(group + together, conv.groups), x, w, y);
  } else {
    for (int64_t group = 0; group < conv.groups; ++group) correlate_large_v(output, group, x, w, y);
  }
  correct_outliers(conv, output.guard, x, w, y, epilogue);
}

template <class S>
std::string describe(const Conv& conv) {
  const char* const sharing = groups_together<S>(conv) > 0
                                  ? "each task transforms its inputs, and all share the weights"
                                  : "weights are transformed for many tiles at once";
  return std::string("F(4x4, 3x3), ") + sharing;
}

}  // namespace winograd
