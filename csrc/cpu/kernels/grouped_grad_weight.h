// grad_weight of grouped, and the parts of it that grad_weight in place shares. Lanes are output channels, as in
// forward; each tap of a vector has one vector of accumulators.

namespace grouped {

// How grad_weight is cut into tasks, sets of vectors x chunks of blocks, and the accumulators: each chunk has separate
// ones. The number of chunks depends on the problem only.
template <class S>
struct WeightTasks {
  using T = Acc<S>;

  static constexpr int64_t tasks = 64;                   // to aim for, so that each of 64 threads has one
  static constexpr int64_t accumulator_bytes = 4 << 20;  // the accumulators of several chunks
  static_assert(accumulator_bytes <= Plan::taps_bytes, "Plan bounds the accumulators of a single chunk by taps_bytes");

  // Blocks [block, block_end) of vectors [v, v_end).
  struct Task {
    int64_t chunk, v, v_end, block, block_end;
  };

  const Conv& conv;
  const Lanes share;
  const int64_t per_task;  // vectors of a set
  const int64_t sets;
  const int64_t blocks;
  const int64_t taps;  // of one output channel
  const int64_t size;  // accumulators of one vector
  const int64_t chunks;
  T* data;  // [chunk][vector][r][c][s][lane]

  WeightTasks(const Conv& conv, bool overlap, int64_t per_task, int64_t blocks, Scratch& scratch)
      : conv(conv),
        share(conv, lanes<S>, overlap),
        per_task(per_task),
        sets(ceil_div(share.vectors, per_task)),
        blocks(blocks),
        taps(conv.rows.kernel * conv.cols.kernel * share.c),
        size(taps * lanes<S>),
        chunks(std::clamp<int64_t>(
            std::min(ceil_div(tasks, sets), accumulator_bytes / (size * share.vectors * int64_t(sizeof(T)))), 1,
            std::max<int64_t>(1, blocks))),
        data(scratch.take<T>(chunks * share.vectors * size)) {}

  int64_t count() const { return sets * chunks; }

  Task operator[](int64_t i) const {
    const int64_t first = i % sets * per_task, chunk = i / sets;
    return {.chunk = chunk,
            .v = first,
            .v_end = std::min(first + per_task, share.vectors),
            .block = split_begin(blocks, chunks, chunk),
            .block_end = split_begin(blocks, chunks, chunk + 1)};
  }

  T* accumulators(int64_t chunk, int64_t v) const { return data + (chunk * share.vectors + v) * size; }

  // Adds the accumulators of all chunks, and stores the results to w.
  void store(S* w) const {
    parallel_for(share.vectors, double(chunks) * size, [&](int64_t v) {
      reduce_chunks(accumulators(0, v), size, chunks, share.vectors * size);
      store_vector(v, w);
    });
  }

 private:
  void store_vector(int64_t v, S* w) const {
    constexpr int L = lanes<S>;
    const int64_t k = v * share.out, count = std::min(share.out, conv.K - k);
    const T* first = accumulators(0, v) + (k - share.first_out(v));  // the vector before stores the lanes before
    if (share.c == 1 && conv.w.w == 1 && conv.w.h == conv.cols.kernel) {
      const StridedMatrix<S> to{
          .data = w + k * conv.w.n, .rows = taps, .cols = count, .row_stride = 1, .col_stride = conv.w.n};
      return write_tile(first, L, to);
    }
    for (int64_t lane = 0; lane < count; ++lane) {
      const T* from = first + lane;
      S* to = w + (k + lane) * conv.w.n;
      for (int64_t r = 0; r < conv.rows.kernel; ++r)
        for (int64_t c = 0; c < share.c; ++c)
          for (int64_t s = 0; s < conv.cols.kernel; ++s, from += L)
            to[r * conv.w.h + s * conv.w.w + c * conv.w.c] = S(*from);
    }
  }
};

// Accumulates the gradient of rows of taps [r, r_end) into accumulators[r][run][tap][lane], a few rows of taps per
// call.
template <class T>
void accumulate_rows(const AccumulateTaps<T>* functions, TapGradients<T> product, int64_t r, int64_t r_end,
                     int64_t taps) {
  const int64_t count = r_end - r, calls = ceil_div(count, max_tap_rows(taps));
  const T* x = product.x;
  auto* accumulators = product.accumulators;
  for (int64_t i = 0; i < calls; ++i) {
    const int64_t first = split_begin(count, calls, i), rows = split_begin(count, calls, i + 1) - first;
    product.x = x + (r + first) * product.row;
    product.accumulators = accumulators + (r + first) * product.pitch;
    functions[rows - 1](product);
  }
}

// Output pixels whose rows of x stay in L1 for all taps. Their gradients take at most half of L1 (32 KiB).
constexpr int64_t pixels_at_once = 256;
static_assert(pixels_at_once * sizeof(Vector<float>) <= 16 << 10);

// grad_weight from patches.
template <class S>
class WeightGradient {
 public:
  using T = Acc<S>;
  static constexpr int L = lanes<S>;

  WeightGradient(const Conv& conv, const Plan& plan, const S* x, const S* y, Scratch& scratch)
      : conv_(forward_correlation(conv)),
        plan_(plan),
        x_(x),
        y_(y),
        tasks_(conv, false, vectors_per_task, plan.blocks(conv), scratch) {
    const Axis& cols = conv.cols;
    functions_ = tap_gradient_functions<T>(cols.kernel == 1 || cols.dilation == 1 ? cols.kernel : 0,
                                           cols.kernel == 1 ? 1 : cols.stride);
  }

  const WeightTasks<S>& tasks() const { return tasks_; }

  double work_per_task() const {
    return double(tasks_.blocks) / tasks_.chunks * plan_.rows * plan_.cols * (tasks_.taps + output_cost) *
           tasks_.per_task * L;
  }

  void run_task(int64_t i) const {
    const auto task = tasks_[i];
    for (int64_t v = task.v; v < task.v_end; ++v) {
      T* accumulators = tasks_.accumulators(task.chunk, v);
      std::fill_n(accumulators, tasks_.size, T(0));
      for (int64_t b = task.block; b < task.block_end; ++b) accumulate_block(plan_.block(conv_, b), v, accumulators);
    }
  }

 private:
  static constexpr int64_t vectors_per_task = 4;

  // Accumulates the gradient of the taps of vector `v` over a block of outputs.
  void accumulate_block(const Block& block, int64_t v, T* accumulators) const {
    Scratch scratch;
    GroupedPatches<S> patches(conv_, block, share_, scratch);
    const Patch& patch = patches.patch;
    patches.read(v, x_);
    TapGradients<T> product = read_gradients(block, v, scratch);
    product.x = patches.data;
    product.pixel = L;
    product.row = conv_.rows.dilation * patch.row_pitch();
    product.left = 0;
    product.right = patch.cols.size;
    product.x_row = patch.rows.step * patch.row_pitch();
    const int64_t* offset = functions_ ? nullptr : tap_offsets(product, patches.patch_pitch(), scratch);
    const int64_t rows = block.p_end - block.p, together = std::clamp<int64_t>(pixels_at_once / product.cols, 1, rows);
    for (int64_t p = 0; p < rows; p += together) {
      product.rows = std::min(together, rows - p);
      if (functions_) {
        accumulate_runs(product, patches.patch_pitch(), accumulators);
      } else {
        accumulate_listed(product, patch.cols.step, offset, accumulators);
      }
      product.x += together * product.x_row;
      product.y += together * product.y_row;
    }
  }

  // The output gradients of vector `v` in a block: in place where their pixels are whole vectors of accumulators,
  // otherwise copied. Sets y, y_pixel, y_row and cols.
  TapGradients<T> read_gradients(const Block& block, int64_t v, Scratch& scratch) const {
    const int64_t k = v * share_.out, count = std::min(share_.out, conv_.K - k);
    const int64_t rows = block.p_end - block.p, cols = block.q_end - block.q;
    const S* y = y_ + block.n * conv_.y.n + k * conv_.y.c + block.p * conv_.y.h + block.q * conv_.y.w;
    TapGradients<T> product{};
    product.cols = cols;
    if (std::is_same_v<S, T> && conv_.y.c == 1 && count == L) {
      product.y = reinterpret_cast<const T*>(y);
      product.y_pixel = conv_.y.w;
      product.y_row = conv_.y.h;
      return product;
    }
    T* copy = scratch.take<T>(rows * cols * L);
    StridedMatrix<const S> from{
        .data = y, .rows = cols, .cols = count, .row_stride = conv_.y.w, .col_stride = conv_.y.c};
    for (int64_t p = 0; p < rows; ++p, from.data += conv_.y.h) read_tile(from, copy + p * cols * L, L);
    product.y = copy;
    product.y_pixel = L;
    product.y_row = cols * L;
    return product;
  }

  // The offsets in the patches of all taps, [r][c][s].
  const int64_t* tap_offsets(const TapGradients<T>& product, int64_t patch_pitch, Scratch& scratch) const {
    int64_t* offset = scratch.take<int64_t>(tasks_.taps);
    int64_t i = 0;
    for (int64_t r = 0; r < conv_.rows.kernel; ++r)
      for (int64_t c = 0; c < share_.c; ++c)
        for (int64_t s = 0; s < conv_.cols.kernel; ++s)
          offset[i++] = r * product.row + c * patch_pitch + s * conv_.cols.dilation * product.pixel;
    return offset;
  }

  // Accumulates with the functions for this kernel width and stride, one input channel at a time.
  void accumulate_runs(TapGradients<T> product, int64_t patch_pitch, T* accumulators) const {
    const int64_t taps = conv_.cols.kernel;
    product.pitch = share_.c * taps * L;
    product.accumulators = accumulators;
    for (int64_t c = 0; c < share_.c; ++c) {
      accumulate_rows(functions_, product, 0, conv_.rows.kernel, taps);
      product.x += patch_pitch;
      product.accumulators += taps * L;
    }
  }

  // Accumulates with the generic functions, a part of all taps at a time.
  void accumulate_listed(TapGradients<T> product, int64_t step, const int64_t* offset, T* accumulators) const {
    const int64_t taps = tasks_.taps, calls = ceil_div(taps, max_taps);
    for (int64_t i = 0; i < calls; ++i) {
      const int64_t first = split_begin(taps, calls, i), count = split_begin(taps, calls, i + 1) - first;
      product.accumulators = accumulators + first * L;
      any_tap_gradient_functions<T>[count - least_taps<T>](product, step, offset + first);
    }
  }

  const Correlation conv_;
  const Plan& plan_;
  const S* x_;
  const S* y_;
  const WeightTasks<S> tasks_;
  const Lanes& share_ = tasks_.share;
  const AccumulateTaps<T>* functions_;  // null if none are compiled for this kernel width and stride
};

// grad_weight from patches.
template <class S>
void grad_weight(const Conv& conv, const Plan& plan, const S* x, const S* y, S* w) {
  Scratch scratch;
  const WeightGradient<S> gradient(conv, plan, x, y, scratch);
  parallel_for(gradient.tasks().count(), gradient.work_per_task(), [&](int64_t task) { gradient.run_task(task); });
  gradient.tasks().store(w);
}

}  // namespace grouped
