// gemm: the plan of forward and grad_input, and their estimated cost. See gemm.h.

namespace gemm {

// How a correlation of tensors of S is cut into tasks and tiles. GEMM elements E are single values, or bf16 pairs of
// channels. Of these figures only `channels` affects the order of a reduction, and it depends on neither the batch nor
// the number of threads.
template <class E, class S>
struct Plan {
  static constexpr int64_t panel_bytes = 320 << 10;      // one panel of packed weights: a third of L2 (1 MiB)
  static constexpr int64_t set_bytes = 4 << 20;          // the panels that are multiplied with one patch, from L3
  static constexpr int64_t patch_bytes = 256 << 10;      // the patch of a block: a quarter of L2
  static constexpr int64_t weights_bytes = 8 << 20;      // the packed weights of one round
  static constexpr int64_t own_weights_bytes = 8 << 20;  // of all workers, if each packs them
  static constexpr int64_t min_own_pixels = 32;          // of a worker, below which that takes too much of its time
  static constexpr int64_t buffer_bytes = 2 << 20;       // the staging buffer, for results in another layout or dtype
  static constexpr int64_t max_channels = 512;           // of a channel block
  static constexpr int64_t min_spread = 128;             // with fewer channels, joined taps are worth more
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
  if (conv.cols.dilation == 1) plan.joined = std::max<int64_t>(1, conv.cols.kernel);
  plan.small_k = !paired && K <= max_small_k<S> &&
                 K * (plan.small_k_fmas_per_pixel(taps) + lane_reduction_cost) < double(taps) * C;
  if (plan.small_k) plan.lanes_per_panel = K;
  // Pixels of a tile that are a multiple of 2 or 4 KiB apart fall into few sets of L1: a longer pitch spreads them.
  // Then neighbouring taps are no longer one run.
  const int64_t pixel = channels * size % 4096;
  const bool clash = conv.cols.kernel <= 1 ? pixel % 2048 == 0 : conv.cols.stride % 4096 * pixel % 4096 == 0;
  if (clash && (conv.cols.kernel <= 1 || (!plan.small_k && channels >= Plan::min_spread))) {
    plan.pitch += L;
    plan.joined = 1;
  }
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

}  // namespace gemm
