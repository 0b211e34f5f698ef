// gemm: the plan of grad_weight, and its estimated cost. See gemm_grad_weight.h.

namespace gemm {

// How grad_weight is cut into tasks and tiles. Only `filters`, which affects no reduction, depends on the number of
// threads.
template <class S>
struct WeightPlan {
  static constexpr int64_t block_pixels = 256;
  static constexpr int64_t min_block_pixels = 128;                 // with fewer, a task gets fewer channels
  static constexpr int64_t patch_bytes = 256 << 10;                // the patch of a block: a quarter of L2
  static constexpr int64_t accumulator_bytes = 8 << 20;            // the accumulators of all chunks, in one round
  static constexpr int64_t tasks = 64;                             // the number of tasks to aim for
  static constexpr int64_t chunk_pixels = 768;                     // minimum per chunk: adding the chunks is not free
  static constexpr int64_t max_channels = 256, max_filters = 128;  // of a task
  static constexpr int64_t min_split = 64;  // tasks of this many channels and filters are not made smaller

  Blocks<S> blocks;                          // of output pixels
  int64_t channels = 0, channel_groups = 0;  // input channels of a task, and number of such parts of C
  int64_t filters = 0, filter_groups = 0;    // output channels of a task, and number of such parts of K
  int64_t chunks = 0;                        // chunks of blocks, each with separate accumulators
  bool joined = false;                       // the taps of a kernel row and the channels form one run
  int64_t runs = 0, run_length = 0;          // runs of x under one output pixel, and elements of each
  bool swapped = false;                      // lanes are output channels
  int64_t pitch = 0, run_pitch = 0;          // strides of the accumulators: from row to row, and from run to run
  bool x_in_place = false, y_in_place = false;
  bool direct = false;  // accumulators are stored straight to w
  bool possible = false;

  std::string describe() const {
    std::string text = "blocks of " + counted(blocks.pixels(), "pixel") + " in " + counted(chunks, "chunk") + ", " +
                       counted(channels, "input channel") + " and " + counted(filters, "output channel") +
                       " a task, lanes are " + (swapped ? "output channels" : "input channels");
    if (x_in_place) text += ", x is read in place";
    if (y_in_place) text += ", y is read in place";
    return text;
  }

  // Sets the strides of the accumulators, for K output channels in all.
  void lay_out_accumulators(int64_t K) {
    constexpr int L = lanes<S>;
    filter_groups = ceil_div(K, filters);
    pitch = swapped ? round_up(filters, L) : runs * round_up(run_length, L);
    run_pitch = swapped ? run_length * pitch : round_up(run_length, L);
  }

  int64_t accumulators() const { return swapped ? runs * run_pitch : filters * pitch; }
};

// The pitch of pixels of `pitch` elements, padded so that they spread over the sets of L1.
template <class T>
int64_t spread_pitch(int64_t pitch) {
  return pitch * int64_t(sizeof(T)) % 256 == 0 ? pitch + lanes<T> : pitch;
}

// With bf16 pairs of images, the problem has half the batch, rounded up.
template <class E>
Conv half_batch(Conv conv) {
  conv.N = (conv.N - 1) / values_per<E> + 1;
  return conv;
}

// Maximum number of chunks: each has at least chunk_pixels pixels.
template <class S>
double max_chunks(const Conv& conv) {
  return std::max(1.0, double(conv.N) * conv.rows.out * conv.cols.out / WeightPlan<S>::chunk_pixels);
}

// The size of equal parts of `all`, of about `most` or fewer, rounded up to a multiple.
inline int64_t part_size(int64_t all, int64_t most, int64_t multiple) {
  const int64_t parts = ceil_div(all, most);
  return std::min(all, round_up(ceil_div(all, parts), multiple));
}

// The blocks, channels and filters of a task.
template <class E, class S>
WeightPlan<S> cut_tasks(const Conv& conv) {
  using Plan = WeightPlan<S>;
  constexpr int L = lanes<S>, size = sizeof(Acc<S>);
  const int64_t C = conv.C_per_group(), K = conv.K_per_group();
  const double taps = double(conv.rows.kernel * conv.cols.kernel);
  const auto cut = [&](int64_t channels) { return Blocks<S>(conv, Plan::block_pixels, channels, Plan::patch_bytes); };
  // Fewer channels while the blocks are small: this makes the reductions longer.
  int64_t channels = part_size(C, Plan::max_channels, 2 * L);
  while (channels > 2 * L && cut(channels).pixels() < Plan::min_block_pixels)
    channels = part_size(C, channels / 2, 2 * L);
  // Fewer filters while their accumulators take too much memory: otherwise wide layers would go to the reference.
  int64_t filters = part_size(K, Plan::max_filters, max_rows<2>);
  while (filters > max_rows<2> && double(filters) * taps * C * size > 0.75 * Plan::accumulator_bytes)
    filters = part_size(K, filters / 2, max_rows<2>);
  // Smaller tasks where chunks of at least chunk_pixels pixels leave too few of them.
  const auto tasks = [&] { return max_chunks<S>(conv) * conv.groups * ceil_div(C, channels) * ceil_div(K, filters); };
  while (tasks() < Plan::tasks / 2 && std::max(channels, filters) > Plan::min_split) {
    if (channels > filters) {
      channels = part_size(C, channels / 2, 2 * L);
    } else {
      filters = part_size(K, filters / 2, max_rows<2>);
    }
  }
  return {.blocks = cut(channels),
          .channels = channels,
          .channel_groups = ceil_div(C, channels),
          .filters = filters,
          .filter_groups = ceil_div(K, filters)};
}

// Plans grad_weight. Not `possible` if patches or accumulators exceed the working memory.
template <class E, class S>
WeightPlan<S> weight_plan(const Conv& whole) {
  using Plan = WeightPlan<S>;
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const Conv conv = half_batch<E>(whole);
  const int64_t C = conv.C_per_group(), K = conv.K_per_group(), taps = conv.rows.kernel * conv.cols.kernel;
  Plan plan = cut_tasks<E, S>(conv);

  plan.joined = conv.cols.kernel == 1 || conv.cols.dilation == 1;
  plan.runs = plan.joined ? conv.rows.kernel : taps;
  plan.run_length = plan.joined ? conv.cols.kernel * plan.channels : plan.channels;
  const auto filled = [&](int64_t lanes) { return double(lanes) / round_up(lanes, L); };
  plan.swapped = filled(plan.filters) > filled(plan.run_length);
  // Whole vectors of filters, so that none reads beyond the end of y where y is read in place.
  if (plan.swapped) plan.filters = part_size(K, plan.filters, 2 * L);
  plan.lay_out_accumulators(K);

  const double bytes = double(plan.accumulators()) * plan.channel_groups * sizeof(T);  // of one filter group
  plan.chunks = std::clamp<int64_t>(Plan::tasks / (conv.groups * plan.channel_groups * plan.filter_groups), 1,
                                    std::min<int64_t>(max_chunks<S>(conv), plan.blocks.count()));
  plan.chunks =
      std::clamp<int64_t>(int64_t(Plan::accumulator_bytes / bytes / plan.filter_groups / conv.groups), 1, plan.chunks);
  plan.possible = plan.blocks.patch_bytes <= 4.0 * Plan::patch_bytes && bytes <= Plan::accumulator_bytes;

  constexpr bool plain = std::is_same_v<S, T>;
  plan.x_in_place = plain && taps == 1 && conv.x.c == 1 && (C % L == 0 || plan.swapped) && conv.rows.pad == 0 &&
                    conv.cols.pad == 0 && conv.rows.position(conv.rows.out - 1, 0) < conv.rows.in &&
                    conv.cols.position(conv.cols.out - 1, 0) < conv.cols.in;
  plan.y_in_place = plain && conv.y.c == 1 && (K % L == 0 || !plan.swapped);
  plan.direct = plain && plan.chunks == 1 && !plan.swapped && conv.w.c == 1 && plan.run_length % L == 0 &&
                (taps == 1 || (plan.joined && plan.channels == C && conv.w.w == C)) && C % plan.channels % L == 0;

  // Fewer filters per task for many threads. No reduction depends on that.
  const int64_t multiple = plan.swapped ? 2 * L : max_rows<2>;
  while (conv.groups * plan.channel_groups * plan.filter_groups * plan.chunks < thread_count()) {
    const int64_t fewer = part_size(K, std::max<int64_t>(1, plan.filters / 2), multiple);
    if (fewer == plan.filters) break;
    plan.filters = fewer;
    plan.lay_out_accumulators(K);
  }
  return plan;
}

// The estimated cycles per output pixel of grad_weight, in float32.
inline double weight_cost(const Conv& conv) {
  const auto plan = weight_plan<float, float>(conv);
  const auto vectors = [](int64_t lanes) { return ceil_div(lanes, Simd<float>::lanes); };
  const int64_t rows = plan.runs * plan.run_length * plan.channel_groups, K = conv.K_per_group();
  return double(plan.swapped ? rows * vectors(K) : plan.runs * vectors(plan.run_length) * plan.channel_groups * K) +
         copies(conv);
}

}  // namespace gemm
