// amx_gemm: grad_weight in bfloat16 as an implicit matrix product of AMX tiles. The reduction runs over output pixels.
//
// A task copies its block of x with pixels innermost, [channel][pixel], so that a tap is an offset into it, and its
// block of y as pairs of neighbouring pixels, [pair][filter]. Rows of pixels keep the padding between them, where y is
// zero. With a stride, each phase of the pixels of x is a plane of its own. The accumulators of a task are
// [tap][channel][filter]; chunks of blocks are added as in gemm (gemm_grad_weight.h).
//
// Few channels would leave most rows of a tile empty: then the taps of a kernel row count as channels ("joined").

namespace amx_gemm {

using WeightPlan = gemm::WeightPlan<S>;

constexpr int64_t weight_pixels = 1024;            // of a block
constexpr int64_t weight_patch_bytes = 512 << 10;  // of the copy of x
constexpr int64_t weight_copy_bytes = 4 << 20;     // of the copies of x and y each, at most
constexpr int64_t task_bytes = 1 << 20;            // of the accumulators of a task: half of L2
constexpr int64_t max_parts = 512;                 // channels or filters of a task
constexpr double min_chunk_pixels = 2048;          // of a chunk: adding the chunks is not free

// One block of pixels as it is copied, [plane][row][column] for each channel, and the same for each filter.
struct WeightBlock {
  Patch patch;
  int64_t images, rows, cols;  // of y
  int64_t width;               // pixels from one row to the next, in both copies
  int64_t plane;               // pixels of a plane of x
  int64_t x_image, y_image;    // pixels from one image to the next
  int64_t runs, steps;         // of the reduction: runs of contiguous pixels, and tiles of 32 in each
  int64_t pitch;               // of x: elements from one channel to the next

  WeightBlock(const Conv& conv, const Block& block, bool joined)
      : patch(conv, block, 1),
        images(block.n_end - block.n),
        rows(block.p_end - block.p),
        cols(block.q_end - block.q),
        width(cols + (joined ? 0 : reach(conv.cols, patch.cols))),
        plane((rows + reach(conv.rows, patch.rows)) * width),
        x_image(patch.rows.step * (joined ? 1 : patch.cols.step) * plane),
        y_image(rows * width),
        runs(images),
        steps(ceil_div(y_image, 2 * amx_pairs)) {
    if (x_image == y_image) {  // no rows beyond those of y, and no phases: all images are one run
      steps = ceil_div(images * y_image, 2 * amx_pairs);
      runs = 1;
    } else {
      y_image = steps * 2 * amx_pairs;
    }
    // The last tile reads beyond the last row. An odd number of cache lines spreads channels over the sets of L1.
    const int64_t lines = ceil_div(images * x_image + width + 2 * amx_pairs, 2 * amx_pairs);
    pitch = (lines | 1) * 2 * amx_pairs;
  }

  // Output positions from the first tap to the last one.
  static int64_t reach(const Axis& axis, const PatchAxis& patch) {
    return axis.kernel > 1 ? (axis.kernel - 1) * axis.dilation / patch.step : 0;
  }

  int64_t y_pixels() const { return runs * steps * 2 * amx_pairs; }

  // The first pixel of x that a tap reads. With joined taps, that of a kernel row.
  int64_t offset(const Conv& conv, int64_t r, int64_t s, bool joined) const {
    const int64_t i = r * conv.rows.dilation, j = joined ? 0 : s * conv.cols.dilation;
    const int64_t phases = joined ? 1 : patch.cols.step;
    return (i % patch.rows.step * phases + j % patch.cols.step) * plane + i / patch.rows.step * width +
           j / patch.cols.step;
  }
};

// The pitch of rows of `count` floats or pairs, which must not be a multiple of 2 KiB.
inline int64_t pitch_of(int64_t count) {
  const int64_t pitch = round_up(count, amx_lanes);
  return pitch * 4 % 2048 == 0 ? pitch + amx_lanes : pitch;
}

inline void lay_out(WeightPlan& plan, int64_t K) {
  plan.filter_groups = ceil_div(K, plan.filters);
  plan.pitch = pitch_of(plan.filters);
  plan.run_pitch = plan.run_length * plan.pitch;
}

// Plans grad_weight. Not `possible` if copies or accumulators exceed the working memory.
inline WeightPlan weight_plan(const Conv& conv) {
  const int64_t C = conv.C_per_group(), K = conv.K_per_group(), S_taps = conv.cols.kernel;
  const auto rows_of = [](int64_t lines) { return round_up(lines, amx_rows); };
  WeightPlan plan;
  if (conv.rows.kernel * S_taps == 0 || conv.rows.out == 0 || conv.cols.out == 0) return plan;
  plan.swapped = true;
  plan.joined = S_taps > 1 && 3 * rows_of(S_taps * C) <= 2 * S_taps * rows_of(C) && S_taps * C <= max_parts;
  plan.runs = plan.joined ? conv.rows.kernel : conv.rows.kernel * S_taps;
  plan.channels = plan.joined ? C : gemm::part_size(C, max_parts, 2 * amx_rows);
  plan.filters = gemm::part_size(K, max_parts, 2 * amx_lanes);
  const auto bytes = [&] {
    plan.run_length = rows_of(plan.joined ? S_taps * C : plan.channels);
    lay_out(plan, K);
    return double(plan.runs) * plan.run_pitch * 4;
  };
  constexpr int64_t least = 2 * amx_rows;
  while (bytes() > task_bytes && std::max(plan.joined ? 0 : plan.channels, plan.filters) > least) {
    if (!plan.joined && plan.channels >= plan.filters) {
      plan.channels = gemm::part_size(C, plan.channels / 2, least);
    } else {
      plan.filters = gemm::part_size(K, plan.filters / 2, least);
    }
  }
  plan.channel_groups = ceil_div(C, plan.channels);

  const int64_t lines = plan.run_length;
  plan.blocks = Blocks<S>(conv, weight_pixels, ceil_div(lines, 2), weight_patch_bytes);
  const double of_slice = bytes() * plan.channel_groups;
  plan.possible = plan.blocks.patch_bytes <= double(weight_copy_bytes) && of_slice <= WeightPlan::accumulator_bytes;
  if (!plan.possible) return plan;
  // Whether the plan is possible must not depend on the batch. The last block of a row may be a single column, which
  // has other phases.
  const auto block_fits = [&](int64_t cols) {
    const WeightBlock block(conv, {0, plan.blocks.images, 0, plan.blocks.rows, 0, cols}, plan.joined);
    return double(block.pitch) * lines * 2 <= weight_copy_bytes &&
           double(block.y_pixels() + 64) * pitch_of(plan.filters) * 2 <= weight_copy_bytes;
  };
  const auto fits = [&] {
    return block_fits(plan.blocks.cols) && block_fits((conv.cols.out - 1) % plan.blocks.cols + 1);
  };
  while (plan.blocks.images > 1 && !fits()) --plan.blocks.images;
  plan.possible = fits();

  const double pixels = double(conv.N) * conv.rows.out * conv.cols.out;
  plan.chunks = std::clamp<int64_t>(WeightPlan::tasks / (conv.groups * plan.channel_groups * plan.filter_groups), 1,
                                    std::clamp<int64_t>(int64_t(pixels / min_chunk_pixels), 1, plan.blocks.count()));
  const double room = WeightPlan::accumulator_bytes / of_slice / plan.filter_groups / conv.groups;
  plan.chunks = std::clamp<int64_t>(int64_t(room), 1, plan.chunks);

  // Fewer filters per task for many threads. No reduction depends on that.
  while (conv.groups * plan.channel_groups * plan.filter_groups * plan.chunks < thread_count()) {
    const int64_t fewer = gemm::part_size(K, std::max<int64_t>(1, plan.filters / 2), least);
    if (fewer == plan.filters) break;
    plan.filters = fewer;
    lay_out(plan, K);
  }
  return plan;
}

// Copies `pixels` neighbouring pixels of `channels` channels to `to`, [channel][pixel]. Writes a zero behind an odd
// number of pixels.
inline void copy_pixels(const S* from, int64_t channels, int64_t pixels, int64_t channel_stride, int64_t pixel_stride,
                        S* to, int64_t pitch) {
  const auto pairs = [](S* at) { return reinterpret_cast<Bf16Pair*>(at); };
  // A single pixel has no step to the next one: the product may overflow 64 bits.
  if (pixels > 1)
    read_elements<S>({from, channels, pixels / 2, channel_stride, 2 * pixel_stride}, pixel_stride, pairs(to),
                     pitch / 2);
  if (pixels % 2) {
    const int64_t last = pixels - 1;
    read_elements<S>({last > 0 ? from + last * pixel_stride : from, channels, 1, channel_stride, 0}, no_second,
                     pairs(to + last), pitch / 2);
  }
}

// Accumulates a part of the weights.
class WeightTask : gemm::WeightPart {
 public:
  using Call = gemm::WeightCall<float, S>;

  WeightTask(const Call& call, int64_t slice, int64_t channel_group, int64_t chunk)
      : WeightPart(call.conv, call.plan, slice, channel_group, chunk),
        call_(call),
        conv_(call.conv),
        plan_(call.plan),
        lines_(round_up((plan_.joined ? conv_.cols.kernel : 1) * channels_, amx_rows)),
        total_(call.accumulators_of(slice, channel_group, chunk)) {}

  void run() const {
    if (begin_ == end_) std::fill_n(total_, plan_.accumulators(), 0.0f);
    for (int64_t block = begin_; block < end_; ++block) accumulate(plan_.blocks[block], block > begin_);
  }

  // The accumulators of this task for one run: rows and columns that are in use.
  int64_t lines() const { return lines_; }
  int64_t lanes_in_use() const { return round_up(filters_, amx_lanes); }

 private:
  void accumulate(const Block& block, bool add) const {
    Scratch scratch;
    const WeightBlock shape(conv_, block, plan_.joined);
    const S* x = copy_x(block, shape, scratch);
    const Bf16Pair* y = copy_y(block, shape, scratch);
    int64_t* offset = scratch.take<int64_t>(shape.runs);
    for (int64_t i = 0; i < shape.runs; ++i) offset[i] = i * shape.x_image;
    AmxProduct product{};
    product.a_stride = shape.pitch;
    product.a_offset = offset;
    product.b_stride = pitch_of(plan_.filters);
    product.runs = shape.runs;
    product.steps = shape.steps;
    product.c_stride = plan_.pitch;
    product.add = add;

    const AmxTiles tiles;
    for (int64_t run = 0; run < plan_.runs; ++run) {
      const int64_t r = plan_.joined ? run : run / conv_.cols.kernel, s = plan_.joined ? 0 : run % conv_.cols.kernel;
      const S* tap = x + shape.offset(conv_, r, s, plan_.joined);
      for (int64_t line = 0; line < lines_; line += 2 * amx_rows)
        for (int64_t k = 0; k < filters_; k += 2 * amx_lanes) {
          product.b = y + k;
          for (int64_t i = 0; i < 2; ++i) {
            product.a[i] = tap + (line + i * amx_rows) * shape.pitch;
            product.c[i] = total_ + run * plan_.run_pitch + (line + i * amx_rows) * plan_.pitch + k;
          }
          multiply_tiles(product, lines_ - line > amx_rows ? 2 : 1, filters_ - k > amx_lanes ? 2 : 1);
        }
    }
  }

  // x, [channel][image][plane][row][column]. With joined taps, the channels are those of each tap of a kernel row.
  const S* copy_x(const Block& block, const WeightBlock& shape, Scratch& scratch) const {
    S* copy = scratch.take<S>(lines_ * shape.pitch);
    std::memset(copy, 0, lines_ * shape.pitch * sizeof(S));
    const auto& [rows, cols, pitch] = shape.patch;
    const int64_t top = rows.begin(conv_.rows), bottom = rows.end(conv_.rows);
    const S* first = call_.x + (group_ * conv_.C_per_group() + c_) * conv_.x.c;
    // In the order of addresses, since a zero may be written behind each row.
    for (int64_t n = 0; n < shape.images; ++n)
      for (int64_t row_phase = 0; row_phase < std::min(rows.step, rows.size); ++row_phase)
        for (int64_t part = 0; part < (plan_.joined ? conv_.cols.kernel : std::min(cols.step, cols.size)); ++part)
          for (int64_t i = row_phase; i < bottom; i += rows.step) {
            if (i < top) continue;
            // Columns j = shift + q * step of the patch, for q in [q, q_end), are in the input.
            const int64_t shift = plan_.joined ? part * conv_.cols.dilation : part;
            const int64_t plane = plan_.joined ? row_phase : row_phase * cols.step + part;
            const auto from_column = [&](int64_t j) {
              return std::clamp<int64_t>(j > shift ? ceil_div(j - shift, cols.step) : 0, 0, shape.width);
            };
            const int64_t q = from_column(cols.begin(conv_.cols)), q_end = from_column(cols.end(conv_.cols));
            if (q >= q_end) continue;
            const int64_t h = rows.first + i * rows.source_step;
            const int64_t w = cols.first + (shift + q * cols.step) * cols.source_step;
            copy_pixels(first + (block.n + n) * conv_.x.n + h * conv_.x.h + w * conv_.x.w, channels_, q_end - q,
                        conv_.x.c, q_end - q > 1 ? conv_.x.w * cols.step * cols.source_step : 0,
                        copy + (plan_.joined ? part * channels_ * shape.pitch : 0) + n * shape.x_image +
                            plane * shape.plane + i / rows.step * shape.width + q,
                        shape.pitch);
          }
    return copy;
  }

  // y as pairs of pixels, [image][pair][filter], with zeros where there is no output. Lanes beyond the last filter are
  // zero up to the next multiple of 16.
  const Bf16Pair* copy_y(const Block& block, const WeightBlock& shape, Scratch& scratch) const {
    const int64_t pairs = shape.y_pixels() / 2, pitch = pitch_of(plan_.filters);
    Bf16Pair* copy = scratch.take<Bf16Pair>(pairs * pitch);
    const S* first = call_.y + block.n * conv_.y.n + (group_ * conv_.K_per_group() + k_) * conv_.y.c +
                     block.p * conv_.y.h + block.q * conv_.y.w;
    if (conv_.y.c == 1) {
      pair_rows(first, shape, copy, pitch);
    } else {
      transpose_rows(first, shape, copy, pitch, scratch);
    }
    return copy;
  }

  // copy_y where filters are contiguous.
  void pair_rows(const S* first, const WeightBlock& shape, Bf16Pair* to, int64_t pitch) const {
    int64_t n = 0, p = 0, q = 0, left = shape.y_image;
    // The address of the next output, or null where there is none.
    const auto next = [&]() -> const S* {
      const S* at = n < shape.images && p < shape.rows && q < shape.cols
                        ? first + n * conv_.y.n + p * conv_.y.h + q * conv_.y.w
                        : nullptr;
      if (++q == shape.width) q = 0, ++p;
      if (--left == 0) left = shape.y_image, q = p = 0, ++n;
      return at;
    };
    for (int64_t pair = 0; pair < shape.y_pixels() / 2; ++pair, to += pitch) {
      const S *low = next(), *high = next();
      for (int64_t k = 0; k < filters_; k += amx_lanes) {
        const uint32_t mask = first_lanes(filters_ - k);
        __m512i v = low ? load_pairs(low + k, high ? high + k : nullptr, mask) : __m512i{};
        if (!low && high) v = _mm512_slli_epi32(load_pairs(high + k, nullptr, mask), 16);
        _mm512_mask_storeu_epi32(to + k, 0xffff, v);
      }
    }
  }

  // copy_y for other layouts, from a copy with pixels innermost.
  void transpose_rows(const S* first, const WeightBlock& shape, Bf16Pair* to, int64_t pitch, Scratch& scratch) const {
    const int64_t pixels = shape.y_pixels(), pixels_pitch = pixels + 2 * amx_pairs;
    S* lines = scratch.take<S>(filters_ * pixels_pitch);
    std::memset(lines, 0, filters_ * pixels_pitch * sizeof(S));
    for (int64_t n = 0; n < shape.images; ++n)
      for (int64_t p = 0; p < shape.rows; ++p)
        copy_pixels(first + n * conv_.y.n + p * conv_.y.h, filters_, shape.cols, conv_.y.c, conv_.y.w,
                    lines + n * shape.y_image + p * shape.width, pixels_pitch);
    if (filters_ % amx_lanes) std::fill_n(to, pixels / 2 * pitch, Bf16Pair{});
    read_elements<S>({lines, pixels / 2, filters_, 2, pixels_pitch}, 1, to, pitch);
  }

  static uint32_t first_lanes(int64_t count) {
    return ::torchconv::cpu::TORCHCONV_ISA::first(int(std::min(count, amx_lanes)));
  }

  const Call& call_;
  const Conv& conv_;
  const WeightPlan& plan_;
  const int64_t lines_;  // rows of tiles that they fill
  float* const total_;
};

// Whether an accumulator of one run of a slice is infinite or NaN, after all chunks were added.
inline bool has_non_finite(const WeightTask::Call& call, int64_t slice, int64_t run) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (int64_t channel_group = 0; channel_group < call.plan.channel_groups; ++channel_group) {
    const WeightTask task(call, slice, channel_group, 0);
    const float* total = call.accumulators_of(slice, channel_group, 0) + run * call.plan.run_pitch;
    if (largest_magnitude(total, task.lines(), task.lanes_in_use(), call.plan.pitch) >= magnitude(infinity))
      return true;
  }
  return false;
}

// Replaces the elements of w that are infinite or NaN by those of the next implementation. Between the rows, elements
// of x were multiplied by zeros, so that a non-finite one may have spoiled results that do not depend on it.
inline void replace_non_finite(const Conv& conv, const S* x, const S* y, S* w) {
  const int64_t C = conv.C_per_group(), R = conv.rows.kernel, S_taps = conv.cols.kernel;
  const std::unique_ptr<S[]> other(new S[conv.K * C * R * S_taps]);
  Conv dense = conv;
  dense.w = {C * R * S_taps, R * S_taps, S_taps, 1};
  AnyPlan plan;
  choose(dense, Op::grad_weight, "!cpu.amx", plan).grad_weight(plan, x, y, other.get());
  const S* from = other.get();
  for (int64_t k = 0; k < conv.K; ++k)
    for (int64_t c = 0; c < C; ++c)
      for (int64_t r = 0; r < R; ++r)
        for (int64_t s = 0; s < S_taps; ++s, ++from) {
          S& element = w[k * conv.w.n + c * conv.w.c + r * conv.w.h + s * conv.w.w];
          if (!std::isfinite(float(element))) element = *from;
        }
}

// Computes w = grad_weight(x, y), where y is the output gradient. Tasks: slices x channel groups x chunks.
inline void grad_weight(const Conv& conv, const WeightPlan& plan, const S* x, const S* y, S* w) {
  std::atomic<bool> finite = true;
  {
    Scratch scratch;
    WeightTask::Call call(conv, plan, x, y, w, scratch);
    const double pixels = double(conv.N) * conv.rows.out * conv.cols.out / plan.chunks;
    for (call.first = 0; call.first < call.slices(); call.first += call.per_round) {
      const int64_t slices = std::min(call.per_round, call.slices() - call.first);
      parallel_for(slices * plan.channel_groups * plan.chunks,
                   pixels * plan.filters * plan.runs * plan.run_length / Plan::speed, [&](int64_t task) {
                     const int64_t channel_group = task % plan.channel_groups, rest = task / plan.channel_groups;
                     WeightTask(call, call.first + rest % slices, channel_group, rest / slices).run();
                   });
      parallel_for(slices * plan.runs, double(plan.chunks) * plan.run_pitch * plan.channel_groups, [&](int64_t task) {
        const int64_t slice = call.first + task / plan.runs, run = task % plan.runs;
        call.store_part(slice, run);
        if (has_non_finite(call, slice, run)) finite = false;
      });
    }
  }
  if (!finite) replace_non_finite(conv, x, y, w);
}

}  // namespace amx_gemm
