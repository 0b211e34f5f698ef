// amx_gemm: forward and grad_input in bfloat16 as an implicit matrix product of AMX tiles (micro/amx.h), for any
// geometry. See docs/kernels.md.
//
// A tile of A is 16 output pixels x 32 elements of the reduction, a tile of B 32 elements x 16 output channels. The
// rows of a tile are equally far apart in memory. Therefore the pixels of a block are walked in segments of such
// pixels: a row of outputs, or a whole image of them including the columns of padding between its rows, whose results
// are dropped. Channels are padded with zeros to a multiple of 32. Where these would be mostly zeros, as in the first
// layer of a network, the window of each pixel is gathered into one run first (im2col).

namespace amx_gemm {

using S = BFloat16;

// How a correlation is cut into tasks and tiles. The order of a reduction depends on the geometry and the channels
// only.
struct Plan {
  static constexpr int64_t weights_bytes = 8 << 20;  // the packed weights of one round
  static constexpr int64_t set_bytes = 1 << 20;  // the panels that are multiplied with one patch: half of L2 (2 MiB)
  static constexpr int64_t patch_bytes = 384 << 10;   // the patch of a block
  static constexpr int64_t window_bytes = 256 << 10;  // the gathered windows of a block
  static constexpr int64_t block_pixels = 512;
  static constexpr int64_t overhang_bytes = 2 << 20;  // of the last tile of a patch, beyond the patch
  static constexpr double speed = 8;                  // products a cycle, for each product of the other kernels

  int64_t lanes_per_panel;  // 16 or 32 output channels
  int64_t panels;           // in a group
  int64_t panels_per_task;
  int64_t pairs;          // of channels, rounded up
  int64_t runs, steps;    // of the reduction: runs of contiguous elements, and tiles of 32 elements in each
  int64_t pitch;          // pairs of a patch from one pixel to the next
  bool gathered = false;  // one run for all taps
  bool in_place = false;  // x is read in place, without a patch
  bool possible = false;
  Blocks<S> blocks;

  // In pairs. Windows are an odd number of cache lines apart, so that they spread over the sets of L1.
  int64_t panel_size() const { return runs * steps * amx_pairs * lanes_per_panel; }
  int64_t window_pitch() const { return (steps | 1) * amx_pairs; }
  // For the last panel of a group, 16 lanes may be enough.
  int64_t lanes_of(int64_t panel, int64_t K) const {
    return K - panel % panels * lanes_per_panel <= amx_lanes ? amx_lanes : lanes_per_panel;
  }

  std::string describe() const {
    std::string text =
        "blocks of " + counted(blocks.pixels(), "pixel") + ", panels of " + counted(lanes_per_panel, "output channel");
    if (in_place) text += ", x is read in place";
    if (gathered) text += ", windows are gathered";
    return text;
  }
};

// Tiles of 32 elements that each pixel of x takes under all taps, when each tap is a run, and when all of them are one.
inline int64_t separate_steps(int64_t taps, int64_t pairs) { return taps * ceil_div(pairs, amx_pairs); }
inline int64_t gathered_steps(int64_t taps, int64_t pairs) { return ceil_div(taps * pairs, amx_pairs); }

// Plans a correlation. Not `possible` if its weights or a patch exceed the working memory.
inline Plan plan(const Correlation& conv) {
  constexpr double max_elements = 1 << 20;  // of a window: beyond it, a panel exceeds the working memory
  const int64_t C = conv.C_per_group(), K = conv.K_per_group(), pairs = ceil_div(C, 2);
  const double window = double(conv.rows.kernel) * conv.cols.kernel * C;
  Plan plan{};
  if (window > max_elements) return plan;
  const int64_t taps = conv.rows.kernel * conv.cols.kernel;
  plan.lanes_per_panel = K <= amx_lanes ? amx_lanes : 2 * amx_lanes;
  plan.panels = ceil_div(K, plan.lanes_per_panel);
  plan.pairs = pairs;
  // Gathering pays off where it saves a quarter of the products.
  plan.gathered = 4 * gathered_steps(taps, pairs) <= 3 * separate_steps(taps, pairs);
  plan.runs = plan.gathered ? 1 : taps;
  plan.steps = plan.gathered ? gathered_steps(taps, pairs) : separate_steps(1, pairs);
  plan.pitch = plan.gathered ? pairs : plan.steps * amx_pairs;
  // Pixels that are a multiple of 2 KiB apart fall into few sets of L1.
  if (!plan.gathered && plan.pitch * 4 % 2048 == 0) plan.pitch += amx_pairs;

  const int64_t window_pixels = Plan::window_bytes / 4 / plan.window_pitch();
  const int64_t pixels = plan.gathered ? std::clamp<int64_t>(window_pixels, 1, Plan::block_pixels) : Plan::block_pixels;
  plan.blocks = Blocks<S>(conv, pixels, plan.pitch, Plan::patch_bytes);
  const Patch patch(conv, {0, 1, 0, plan.blocks.rows, 0, plan.blocks.cols}, plan.pitch);
  const double overhang = plan.gathered ? 0 : double(amx_rows) * patch.cols.step * plan.pitch * 4;
  plan.possible = plan.blocks.patch_bytes <= 4.0 * Plan::patch_bytes && overhang <= Plan::overhang_bytes &&
                  double(plan.blocks.pixels()) * plan.window_pitch() * 4 * plan.gathered <= 4.0 * Plan::window_bytes &&
                  plan.panel_size() * 4 <= Plan::weights_bytes &&
                  double(conv.groups) * plan.panels * plan.lanes_per_panel * 4 <= Plan::weights_bytes / 2;  // bias

  // x is not read in place if its pixels are a multiple of 4 KiB apart: they would fall into few sets of L1. Nor if
  // there is a single column of outputs, unless x.w happens to be the distance of rows: each would need its own tile.
  const bool is_column = conv.cols.out == 1 && conv.rows.out > 1;
  const double edge = double(amx_rows) * conv.x.w * conv.cols.stride * 2;
  plan.in_place = taps == 1 && edge <= Plan::overhang_bytes && C % (2 * amx_pairs) == 0 && conv.x.c == 1 &&
                  conv.rows.pad == 0 && conv.cols.pad == 0 && conv.rows.position(conv.rows.out - 1, 0) < conv.rows.in &&
                  conv.cols.position(conv.cols.out - 1, 0) < conv.cols.in &&
                  conv.x.w * conv.cols.stride * 2 % 4096 != 0 &&
                  !(is_column && conv.x.w * conv.cols.stride != conv.x.h * conv.rows.stride);
  plan.panels_per_task =
      std::clamp<int64_t>(Plan::set_bytes / 4 / std::max<int64_t>(1, plan.panel_size()), 1, plan.panels);
  return plan;
}

// The pixels of a block, as segments of equally distant pixels of the source.
struct Segments {
  int64_t images, rows, cols;    // of the block
  int64_t width;                 // pixels from one row of a segment to the next; those from `cols` on are dropped
  int64_t rows_per_segment = 1;  // of the rows of all images
  int64_t tiles_per_segment;

  Segments(const Block& block, const gemm::SourceView<S>& source)
      : images(block.n_end - block.n), rows(block.p_end - block.p), cols(block.q_end - block.q), width(cols) {
    if (rows > 1 && source.col_stride > 0 && source.row_stride % source.col_stride == 0) {
      const int64_t wide = source.row_stride / source.col_stride;
      if (wide >= cols && ceil_div((rows - 1) * wide + cols, amx_rows) <= rows * ceil_div(cols, amx_rows)) {
        width = wide;
        rows_per_segment = rows;
      }
    }
    if (rows_per_segment == rows && source.image_stride == rows * width * source.col_stride) rows_per_segment *= images;
    tiles_per_segment = ceil_div(pixels(), amx_rows);
  }

  int64_t pixels() const { return (rows_per_segment - 1) * width + cols; }  // of a segment
  int64_t tiles() const { return images * rows / rows_per_segment * tiles_per_segment; }
};

// A correlation with its packed bias and weights. The panels of all groups are computed in rounds, so that the packed
// weights stay below weights_bytes.
struct PackedCorrelation {
  const Correlation& conv;
  const Plan& plan;
  const S *x, *w;
  S* y;
  const S* x_end;               // behind the last element of x
  const bool stream;            // non-temporal stores to y
  PackedEpilogue<S> epilogue;   // [group][panel][lane]
  int64_t per_round;            // panels
  Bf16Pair* packed;             // the panels of this round: [panel][run][step][pair][lane]
  int64_t first = 0, last = 0;  // panels of this round

  PackedCorrelation(const Correlation& conv, const Plan& plan, const S* x, const S* w, S* y, const Epilogue& epilogue,
                    Scratch& scratch)
      : conv(conv),
        plan(plan),
        x(x),
        w(w),
        y(y),
        x_end(x + (conv.N - 1) * conv.x.n + (conv.C - 1) * conv.x.c + (conv.rows.in - 1) * conv.x.h +
              (conv.cols.in - 1) * conv.x.w + 1),
        stream(streams(conv, y, conv.K_per_group()) && conv.K_per_group() % (2 * amx_lanes) == 0),
        epilogue(epilogue, conv.K, conv.K_per_group(), plan.panels * plan.lanes_per_panel, scratch),
        per_round(std::clamp<int64_t>(Plan::weights_bytes / 4 / plan.panel_size(), 1, panels())),
        packed(scratch.take<Bf16Pair>(per_round * plan.panel_size())) {}

  int64_t panels() const { return conv.groups * plan.panels; }
  const Bf16Pair* packed_panel(int64_t panel) const { return packed + (panel - first) * plan.panel_size(); }

  void pack(int64_t panel) const {
    Bf16Pair* to = packed + (panel - first) * plan.panel_size();
    const int64_t lanes = plan.lanes_of(panel, conv.K_per_group());
    const int64_t tap = (plan.gathered ? plan.pairs : plan.steps * amx_pairs) * lanes;
    if (plan.pairs * plan.runs < plan.runs * plan.steps * amx_pairs) std::fill_n(to, plan.panel_size(), Bf16Pair{});
    pack_weights(conv, w, panel / plan.panels, panel % plan.panels * plan.lanes_per_panel, lanes, 0, conv.C_per_group(),
                 to, tap);
  }

  void run() {
    for (; first < panels(); first = last) {
      last = std::min(first + per_round, panels());
      run_round();
    }
  }

  // Tasks: blocks of pixels x sets of panels. A set does not cross groups.
  void run_round() const;
};

// Multiplies one block of pixels with the panels [begin, end), which are of one group.
class BlockTask {
 public:
  BlockTask(const PackedCorrelation& call, const Block& block, int64_t begin, int64_t end)
      : call_(call),
        conv_(call.conv),
        plan_(call.plan),
        block_(block),
        begin_(begin),
        end_(end),
        group_(begin / plan_.panels),
        source_(plan_.in_place   ? view_of_x()
                : plan_.gathered ? gather_windows()
                                 : fill_patch()),
        segments_(block, source_) {}

  void run() {
    int64_t* offset = scratch_.take<int64_t>(plan_.runs);
    for (int64_t run = 0; run < plan_.runs; ++run)
      offset[run] = run / conv_.cols.kernel * source_.tap_row_stride + run % conv_.cols.kernel * source_.tap_col_stride;
    alignas(64) float results[2 * amx_rows][2 * amx_lanes];
    AmxProduct product{};
    product.a_stride = source_.col_stride;
    product.a_offset = offset;
    product.runs = plan_.runs;
    product.steps = plan_.steps;
    product.c[0] = results[0];
    product.c[1] = results[amx_rows];
    product.c_stride = 2 * amx_lanes;

    const AmxTiles tiles;
    S* edge[2] = {};  // copies of the last pixels of x
    for (int64_t tile = 0; tile < segments_.tiles(); tile += 2) {
      const int64_t count = std::min<int64_t>(2, segments_.tiles() - tile);
      for (int64_t i = 0; i < count; ++i) product.a[i] = first_pixel(tile + i, edge[i]);
      for (int64_t panel = begin_; panel < end_; ++panel) {
        const int64_t lanes = plan_.lanes_of(panel, conv_.K_per_group());
        product.b = call_.packed_panel(panel);
        product.b_stride = lanes;
        multiply_tiles(product, count, lanes / amx_lanes);
        for (int64_t i = 0; i < count; ++i) store_tile(tile + i, panel, product.c[i]);
      }
    }
    if (call_.stream) finish_streams();
  }

 private:
  // x in place.
  gemm::SourceView<S> view_of_x() const {
    const S* corner = call_.x + block_.n * conv_.x.n + group_ * conv_.C_per_group() +
                      conv_.rows.position(block_.p, 0) * conv_.x.h + conv_.cols.position(block_.q, 0) * conv_.x.w;
    return {.data = corner,
            .image_stride = conv_.x.n,
            .row_stride = conv_.rows.stride * conv_.x.h,
            .col_stride = conv_.cols.stride * conv_.x.w};
  }

  // Copies the patch of the block, with zeros for the padding and for channels that x does not have.
  gemm::SourceView<S> fill_patch() {
    const Patch patch(conv_, block_, plan_.pitch);
    const int64_t size = (block_.n_end - block_.n) * patch.image_pitch();
    const int64_t overhang = plan_.gathered ? 0 : amx_rows * patch.cols.step * plan_.pitch;
    Bf16Pair* copy = scratch_.take<Bf16Pair>(size + overhang);
    if (plan_.pairs < plan_.pitch) std::fill_n(copy, size, Bf16Pair{});
    const int64_t C = conv_.C_per_group();
    read_patch(conv_, block_, patch, group_ * C, C, call_.x, copy);
    return {.data = reinterpret_cast<const S*>(copy),
            .image_stride = 2 * patch.image_pitch(),
            .row_stride = 2 * patch.rows.step * patch.row_pitch(),
            .col_stride = 2 * patch.cols.step * patch.pitch,
            .tap_row_stride = 2 * conv_.rows.dilation * patch.row_pitch(),
            .tap_col_stride = 2 * conv_.cols.dilation * patch.pitch};
  }

  // Copies the window of each pixel, [row][column][channel], to one run that ends with zeros.
  gemm::SourceView<S> gather_windows() {
    const gemm::SourceView<S> patch = fill_patch();
    const int64_t images = block_.n_end - block_.n, rows = block_.p_end - block_.p, cols = block_.q_end - block_.q;
    const int64_t pitch = plan_.window_pitch(), length = plan_.steps * amx_pairs;
    const bool joined = conv_.cols.dilation == 1;  // the taps of a kernel row are contiguous
    const int64_t run = (joined ? conv_.cols.kernel : 1) * plan_.pairs, per_row = joined ? 1 : conv_.cols.kernel;
    Bf16Pair* to = scratch_.take<Bf16Pair>((images * rows * cols + amx_rows) * pitch);
    const gemm::SourceView<S> view{.data = reinterpret_cast<const S*>(to),
                                   .image_stride = 2 * rows * cols * pitch,
                                   .row_stride = 2 * cols * pitch,
                                   .col_stride = 2 * pitch};
    for (int64_t i = 0; i < images * rows * cols; ++i, to += pitch) {
      const S* window = patch.data + i / cols / rows * patch.image_stride + i / cols % rows * patch.row_stride +
                        i % cols * patch.col_stride;
      // In the order of addresses: a run may be written up to the end of a vector, where the next one begins.
      Bf16Pair* at = to;
      for (int64_t r = 0; r < conv_.rows.kernel; ++r)
        for (int64_t s = 0; s < per_row; ++s, at += run)
          copy_pairs(window + r * patch.tap_row_stride + s * patch.tap_col_stride, run, at);
      std::memset(static_cast<void*>(at), 0, (to + length - at) * sizeof(Bf16Pair));
    }
    return view;
  }

  // Copies `count` pairs, and up to 15 more. Both are in working memory, which is readable beyond its end.
  static void copy_pairs(const S* from, int64_t count, Bf16Pair* to) {
    const auto* pairs = reinterpret_cast<const Bf16Pair*>(from);
    for (int64_t i = 0; i < count; i += amx_pairs) _mm512_storeu_si512(to + i, load(pairs + i));
  }

  // The first pixel of a tile. Rows beyond a segment are read, but their results dropped. If they lie behind the end of
  // x, the pixels of the tile are copied to `edge`.
  const S* first_pixel(int64_t tile, S*& edge) {
    const int64_t segment = tile / segments_.tiles_per_segment, row = segment * segments_.rows_per_segment;
    const int64_t pixel = tile % segments_.tiles_per_segment * amx_rows, stride = source_.col_stride;
    const S* from = source_.data + row / segments_.rows * source_.image_stride +
                    row % segments_.rows * source_.row_stride + pixel * stride;
    if (!plan_.in_place || from + (amx_rows - 1) * stride + conv_.C_per_group() <= call_.x_end) return from;
    if (!edge) edge = scratch_.take<S>((amx_rows - 1) * stride + conv_.C_per_group());
    const int64_t count = std::min(amx_rows, segments_.pixels() - pixel);
    for (int64_t i = 0; i < count; ++i)
      std::memcpy(edge + i * stride, from + i * stride, conv_.C_per_group() * sizeof(S));
    return edge;
  }

  // Stores the results of a tile to y: piece by piece, where a row of outputs ends within the tile.
  void store_tile(int64_t tile, int64_t panel, const float* results) const {
    const int64_t k = panel % plan_.panels * plan_.lanes_per_panel, K = conv_.K_per_group();
    const FusedEpilogue<float> fused = call_.epilogue.at(panel * plan_.lanes_per_panel);
    const int64_t segment = tile / segments_.tiles_per_segment;
    int64_t pixel = tile % segments_.tiles_per_segment * amx_rows;
    for (int64_t left = std::min(amx_rows, segments_.pixels() - pixel); left > 0;) {
      const int64_t row = segment * segments_.rows_per_segment + pixel / segments_.width, col = pixel % segments_.width;
      const int64_t count = std::min(left, segments_.width - col), stored = std::min(count, segments_.cols - col);
      S* to = call_.y + (block_.n + row / segments_.rows) * conv_.y.n + (group_ * K + k) * conv_.y.c +
              (block_.p + row % segments_.rows) * conv_.y.h + (block_.q + col) * conv_.y.w;
      if (stored > 0 && conv_.y.c == 1 && K - k >= 2 * amx_lanes) {
        store_rows(results, stored, to, fused);
      } else if (stored > 0) {
        write_tile<S>(results, 2 * amx_lanes,
                      {to, stored, std::min(plan_.lanes_per_panel, K - k), conv_.y.w, conv_.y.c}, fused);
      }
      results += count * 2 * amx_lanes;
      pixel += count;
      left -= count;
    }
  }

  // Stores `count` pixels of 32 contiguous channels.
  void store_rows(const float* results, int64_t count, S* to, const FusedEpilogue<float>& fused) const {
    for (int64_t i = 0; i < count; ++i, results += 2 * amx_lanes, to += conv_.y.w) {
      const __m512 low = fused(load(results), 0), high = fused(load(results + amx_lanes), amx_lanes);
      if (call_.stream) {
        torchconv::cpu::TORCHCONV_ISA::stream(to, low, high);
      } else {
        store(to, low, high);
      }
    }
  }

  const PackedCorrelation& call_;
  const Correlation& conv_;
  const Plan& plan_;
  const Block block_;
  const int64_t begin_, end_, group_;
  Scratch scratch_;
  const gemm::SourceView<S> source_;
  const Segments segments_;
};

inline void PackedCorrelation::run_round() const {
  parallel_for(last - first, double(plan.panel_size()), [&](int64_t i) { pack(first + i); });
  const int64_t blocks = plan.blocks.count(), first_group = first / plan.panels, last_group = (last - 1) / plan.panels;
  const int64_t groups = last_group - first_group + 1;
  const int64_t wanted =
      std::max(ceil_div(8 * thread_count(), blocks * groups), ceil_div(plan.panels, plan.panels_per_task));
  const int64_t sets = std::min(plan.panels, wanted);
  const double work = double(plan.blocks.pixels()) * plan.panel_size() * plan.panels / sets / Plan::speed;
  parallel_for(blocks * groups * sets, work, [&](int64_t task) {
    const int64_t set = task / blocks, group_begin = (first_group + set / sets) * plan.panels;
    const int64_t begin = std::max(first, group_begin + split_begin(plan.panels, sets, set % sets));
    const int64_t end = std::min(last, group_begin + split_begin(plan.panels, sets, set % sets + 1));
    if (begin < end) BlockTask(*this, plan.blocks[task % blocks], begin, end).run();
  });
}

// Computes one correlation: y = activation(correlation of x and w + bias).
inline void correlate(const Correlation& conv, const Plan& plan, const S* x, const S* w, S* y,
                      const Epilogue& epilogue) {
  if (conv.rows.kernel * conv.cols.kernel == 0) return gemm::write_zeros(conv, y);
  Scratch scratch;
  PackedCorrelation(conv, plan, x, w, y, epilogue, scratch).run();
}

}  // namespace amx_gemm
