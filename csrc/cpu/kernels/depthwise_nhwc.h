// grouped without copies: depthwise convolutions in channels_last (NHWC) with at least one vector of channels. x is
// read in place. If the channels are not whole vectors, the last vector overlaps the one before.

namespace grouped {

constexpr const char* in_place_description = "x is read in place";

// Whether the address of every window can be computed without overflow, including windows far outside the input.
inline bool has_addresses(const Axis& axis, int64_t stride) {
  const double reach = std::abs(double(axis.pad)) + axis.in + double(axis.dilation) * axis.kernel + axis.stride;
  return reach * std::abs(double(stride)) < 1e12;
}

// Whether the problem is depthwise and the pixels of x and y fill vectors, so that both can be used in place.
template <class S>
bool in_place(const Conv& conv) {
  return reads_in_place<S> && has_addresses(conv.rows, conv.x.h) && has_addresses(conv.cols, conv.x.w) &&
         conv.groups == conv.C && conv.groups == conv.K && conv.x.c == 1 && conv.y.c == 1 && conv.C >= lanes<S> &&
         (conv.cols.kernel > 1 || conv.cols.stride == 1);
}

// Rows of taps [first, end).
struct TapRows {
  int64_t first, end;

  bool operator==(const TapRows&) const = default;
};

// The rows of taps that lie in the input, for a window at input position `position` and a kernel of any height.
inline TapRows rows_inside(const Axis& axis, int64_t position) {
  return {position >= 0 ? 0 : ceil_div(-position, axis.dilation),
          position >= axis.in ? 0 : ceil_div(axis.in - position, axis.dilation)};
}

// The rows of taps of the kernel that lie in the input, for row p of the outputs.
inline TapRows kernel_rows_inside(const Axis& axis, int64_t p) {
  const TapRows inside = rows_inside(axis, axis.position(p, 0));
  const int64_t first = std::min(inside.first, axis.kernel);
  return {first, std::clamp(inside.end, first, axis.kernel)};
}

// Maximum number of columns: a row of outputs may have as many tiles, whose list takes less than half of Scratch.
constexpr int64_t max_cols = 1 << 18;
static_assert(max_cols * sizeof(RowCuts<float>::Cut) <= scratch_per_thread / 2);

// Whether correlate_in_place supports all parts: tiles are compiled for the kernel width and stride of each.
template <class S>
bool can_correlate_in_place(const Parts& parts) {
  for (const Part& part : parts) {
    const Axis& cols = part.conv.cols;
    if (!in_place<S>(part.conv) || cols.out > max_cols || (cols.kernel > 1 && cols.dilation > 1) ||
        !has_shape<S>(tile_shapes, std::max<int64_t>(1, cols.kernel), cols.stride))
      return false;
  }
  return true;
}

// forward and grad_input in place. Tasks: a few rows of outputs of one image, for all channels and all parts.
template <class S>
class InPlaceCorrelator {
 public:
  static constexpr int L = lanes<S>;

  InPlaceCorrelator(const Parts& parts, const S* x, const S* w, S* y, const Epilogue& epilogue, Scratch& scratch)
      : conv_(parts[0].conv),
        x_(x),
        packed_(parts, true, false, w, y, epilogue, scratch),
        stream_(streams(conv_, y, conv_.K)) {
    rows_ = std::clamp<int64_t>(conv_.rows.out * conv_.N / min_tasks / 2 * 2, 2, max_rows_per_task);
    row_blocks_ = ceil_div(conv_.rows.out, rows_);
  }

  int64_t tasks() const { return conv_.N * row_blocks_; }

  double work_per_task() const { return double(rows_) * conv_.cols.out * (packed_.taps + output_cost) * conv_.C; }

  void run_task(int64_t task) const {
    const int64_t n = task / row_blocks_, begin = task % row_blocks_ * rows_;
    for (int64_t p = begin; p < begin + rows_; p += 2)
      for (const Taps<S, S>& taps : packed_.parts)
        run_rows(taps, n, p, std::min({p + 2, begin + rows_, taps.conv.rows.out}));
    if (stream_) finish_streams();
  }

 private:
  static constexpr int64_t min_tasks = 64;         // to aim for, so that each of 64 threads has one
  static constexpr int64_t max_rows_per_task = 8;  // an even number, since tiles have two rows

  // Computes rows [p, p_end) of a part, at most two.
  void run_rows(const Taps<S, S>& taps, int64_t n, int64_t p, int64_t p_end) const {
    const Correlation& part = taps.conv;
    const int64_t w = part.cols.position(0, 0);
    Scratch scratch;
    int64_t offset;  // of the only run
    DepthwiseTile<S> tile = taps.tile(part.x.w, part.x.h, 0, part.cols.stride, &offset);
    tile.y_row = part.y.h;
    tile.y_pixel = part.y.w;
    tile.count = L;
    tile.stream = stream_;
    tile.left = -w;
    tile.right = part.cols.in - w;
    const RowCuts<S> cuts = taps.cut(tile, part.cols.out, scratch);
    for (int64_t i = p, made; i < p_end; i += made) {
      made = taps.row_step > 0 && i + 1 < p_end ? 2 : 1;
      const int64_t h = part.rows.position(i, 0);
      const TapRows inside = rows_inside(part.rows, h);
      tile.top = inside.first;
      tile.bottom = inside.end;
      // Prefetches the rows of the next tile. A stride larger than the kernel skips some rows.
      tile.ahead = i + 2 < part.rows.out ? 2 * std::min(part.rows.stride, part.rows.kernel) : 0;
      run_tiles(taps, tile, cuts, made, x_ + n * part.x.n + h * part.x.h + w * part.x.w,
                taps.y + n * part.y.n + i * part.y.h);
    }
  }

  // Computes one or two rows of outputs, all channels. x and y are the first pixels of their rows.
  void run_tiles(const Taps<S, S>& taps, DepthwiseTile<S>& tile, const RowCuts<S>& cuts, int rows, const S* x,
                 S* y) const {
    for (int64_t v = 0; v < packed_.share.vectors; ++v) {
      const FusedEpilogue<Acc<S>> fused = packed_.fused(v);
      tile.fused = fused.is_identity() ? nullptr : &fused;
      tile.w = taps.packed + v * taps.size;
      const int64_t c = packed_.share.first_out(v);
      for (int64_t j = 0; j < cuts.count; ++j) run_cut(cuts.cuts[j], rows, tile, x + c, y + c);
    }
  }

  const Correlation& conv_;  // the first part, which has the most rows
  const S* x_;
  const PackedParts<S, S> packed_;
  const bool stream_;  // y is written with non-temporal stores
  int64_t rows_;       // of a task
  int64_t row_blocks_;
};

// forward and grad_input: computes all parts of a result, reading x and writing y in place.
template <class S>
void correlate_in_place(const Parts& parts, const S* x, const S* w, S* y, const Epilogue& epilogue) {
  Scratch scratch;
  const InPlaceCorrelator<S> correlator(parts, x, w, y, epilogue, scratch);
  parallel_for(correlator.tasks(), correlator.work_per_task(), [&](int64_t task) { correlator.run_task(task); });
}

// Whether grad_weight_in_place supports the problem.
template <class S>
bool can_accumulate_in_place(const Conv& conv) {
  return in_place<S>(conv) && (conv.cols.kernel == 1 || conv.cols.dilation == 1) &&
         has_shape<S>(gradient_shapes, conv.cols.kernel, conv.cols.stride);
}

// grad_weight in place. Blocks are rows of output gradients of one image.
template <class S>
class InPlaceWeightGradient {
 public:
  using T = Acc<S>;
  static constexpr int L = lanes<S>;

  InPlaceWeightGradient(const Conv& conv, const S* x, const S* y, Scratch& scratch)
      : conv_(conv),
        x_(x),
        y_(y),
        rows_(std::clamp<int64_t>(pixels_at_once / conv.cols.out, 1, conv.rows.out)),
        row_blocks_(ceil_div(conv.rows.out, rows_)),
        tasks_(conv, true, std::min(Lanes(conv, L).vectors, max_vectors_per_task), conv.N * row_blocks_, scratch),
        functions_(tap_gradient_functions<S>(conv.cols.kernel, conv.cols.stride)) {}

  const WeightTasks<S>& tasks() const { return tasks_; }

  double work_per_task() const {
    return double(conv_.N) * conv_.rows.out * conv_.cols.out / tasks_.chunks * (tasks_.taps + output_cost) *
           tasks_.per_task * L;
  }

  void run_task(int64_t i) const {
    const auto task = tasks_[i];
    T* accumulators = tasks_.accumulators(task.chunk, task.v);
    std::fill_n(accumulators, (task.v_end - task.v) * tasks_.size, T(0));
    for (int64_t b = task.block; b < task.block_end; ++b)
      for (int64_t v = task.v; v < task.v_end; ++v) accumulate_block(b, v, accumulators + (v - task.v) * tasks_.size);
  }

 private:
  static constexpr int64_t max_vectors_per_task = 16;  // of a set, whose channels are neighbours in memory

  // Accumulates the gradient of the taps of vector `v` over a block.
  void accumulate_block(int64_t block, int64_t v, T* accumulators) const {
    const int64_t n = block / row_blocks_, begin = block % row_blocks_ * rows_;
    const int64_t end = std::min(begin + rows_, conv_.rows.out);
    TapGradients<S> product{};
    product.pixel = conv_.x.w;
    product.row = conv_.rows.dilation * conv_.x.h;
    product.left = conv_.cols.pad;
    product.right = conv_.cols.in + conv_.cols.pad;
    product.x_row = conv_.rows.stride * conv_.x.h;
    product.y_pixel = conv_.y.w;
    product.y_row = conv_.y.h;
    product.cols = conv_.cols.out;
    product.accumulators = accumulators;
    product.pitch = conv_.cols.kernel * L;
    const int64_t c = tasks_.share.first_out(v);
    for (int64_t p = begin; p < end; p += product.rows) {
      // Merges consecutive rows of output gradients for which the same rows of taps lie in the input.
      const TapRows inside = kernel_rows_inside(conv_.rows, p);
      product.rows = 1;
      while (p + product.rows < end && kernel_rows_inside(conv_.rows, p + product.rows) == inside) ++product.rows;
      if (inside.first == inside.end) continue;
      product.x = x_ + n * conv_.x.n + conv_.rows.position(p, 0) * conv_.x.h - conv_.cols.pad * conv_.x.w + c;
      product.y = y_ + n * conv_.y.n + p * conv_.y.h + c;
      accumulate_rows(functions_, product, inside.first, inside.end, conv_.cols.kernel);
    }
  }

  const Conv& conv_;
  const S* x_;
  const S* y_;
  const int64_t rows_;  // of a block
  const int64_t row_blocks_;
  const WeightTasks<S> tasks_;
  const AccumulateTaps<S>* functions_;
};

// grad_weight, reading x and y in place.
template <class S>
void grad_weight_in_place(const Conv& conv, const S* x, const S* y, S* w) {
  Scratch scratch;
  const InPlaceWeightGradient<S> gradient(conv, x, y, scratch);
  parallel_for(gradient.tasks().count(), gradient.work_per_task(), [&](int64_t task) { gradient.run_task(task); });
  gradient.tasks().store(w);
}

}  // namespace grouped
