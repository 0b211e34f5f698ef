// gemm: grad_weight as an implicit matrix product, for any geometry. The reduction runs over output pixels. One
// dimension of the product is the input channels, or taps x input channels where these are contiguous in the patch; the
// other is the output channels ("filters"). Lanes run along the dimension that fills them better.
//
// The pixels are cut into chunks, whose number depends on the problem only. Each chunk is accumulated block by block
// into a separate matrix, and these matrices are added in order. Reductions are therefore short, and their order is the
// same on any number of threads.
//
// A bf16 pair holds the same pixel of two images: its second element is of an image in the second half of the batch,
// and 0 if there is no such image.

namespace gemm {

// Reads a tile of one image. A bf16 pair also reads the image that lies `high` elements further on, if there is one.
template <class E, class S>
struct ImageReader {
  int64_t high;

  void operator()(const StridedMatrix<const S>& from, E* to, int64_t pitch, int64_t ahead = 0) const {
    if constexpr (values_per<E> > 1) {
      read_elements(from, high, to, pitch);
    } else {
      read_tile(from, to, pitch, ahead);
    }
  }
};

// A call of grad_weight. The slices are computed in rounds, so that the accumulators stay below accumulator_bytes. A
// slice is one filter group of one group of the convolution.
template <class E, class S>
struct WeightCall {
  using T = Acc<S>;

  const Conv conv;
  const int64_t all_images;  // of both halves of the batch
  const Correlation problem;
  const WeightPlan<S>& plan;
  const S *x, *y;
  S* w;
  int64_t per_round;  // slices
  T* accumulators;    // of this round: [slice][channel group][chunk]
  int64_t first = 0;  // slice of this round

  WeightCall(const Conv& all, const WeightPlan<S>& plan, const S* x, const S* y, S* w, Scratch& scratch)
      : conv(half_batch<E>(all)), all_images(all.N), problem(forward_correlation(conv)), plan(plan), x(x), y(y), w(w) {
    const int64_t size = plan.accumulators() * plan.channel_groups * plan.chunks;
    per_round = std::clamp<int64_t>(WeightPlan<S>::accumulator_bytes / int64_t(sizeof(T)) / size, 1, slices());
    accumulators = scratch.take<T>(per_round * size);
  }

  int64_t slices() const { return conv.groups * plan.filter_groups; }

  T* accumulators_of(int64_t slice, int64_t channel_group, int64_t chunk) const {
    return accumulators +
           (((slice - first) * plan.channel_groups + channel_group) * plan.chunks + chunk) * plan.accumulators();
  }

  ImageReader<E, S> reader(int64_t n, int64_t image_stride) const {
    return {n + conv.N < all_images ? conv.N * image_stride : no_second};
  }

  // Adds the accumulators of all chunks and stores one part of a slice: the taps of a run or, if not swapped, a filter.
  void store_part(int64_t slice, int64_t part) const {
    const int64_t group = slice / plan.filter_groups, k = slice % plan.filter_groups * plan.filters;
    const int64_t filters = std::min(plan.filters, conv.K_per_group() - k);
    if (!plan.swapped && part >= filters) return;
    const int64_t size = plan.accumulators() / (plan.swapped ? plan.runs : plan.filters);
    for (int64_t channel_group = 0; channel_group < plan.channel_groups; ++channel_group) {
      T* total = accumulators_of(slice, channel_group, 0) + part * size;
      reduce_chunks(total, size, plan.chunks, plan.accumulators());
      const int64_t c = channel_group * plan.channels, channels = std::min(plan.channels, conv.C_per_group() - c);
      S* to = w + (group * conv.K_per_group() + k) * conv.w.n + c * conv.w.c;
      if (plan.swapped) {
        store_run(total, part, channels, filters, to);
      } else {
        store_filter(total, channels, to + part * conv.w.n);
      }
    }
  }

  // Stores the accumulators of one run, [tap of the run][channel][filter].
  void store_run(const T* total, int64_t run, int64_t channels, int64_t filters, S* to) const {
    const int64_t S_taps = conv.cols.kernel, taps = plan.joined ? S_taps : 1;
    for (int64_t i = 0; i < taps; ++i) {
      const int64_t r = plan.joined ? run : run / S_taps, s = plan.joined ? i : run % S_taps;
      write_tile<S>(total + i * channels * plan.pitch, plan.pitch,
                    {to + r * conv.w.h + s * conv.w.w, channels, filters, conv.w.c, conv.w.n});
    }
  }

  // Stores the accumulators of one filter, [run][tap of the run][channel].
  void store_filter(const T* total, int64_t channels, S* to) const {
    const int64_t R = conv.rows.kernel, S_taps = conv.cols.kernel;
    if (plan.joined && S_taps * channels == plan.run_pitch && conv.w.h == S_taps * conv.w.w)
      return write_tile<S>(total, channels, {to, R * S_taps, channels, conv.w.w, conv.w.c});
    for (int64_t r = 0; r < R; ++r)
      for (int64_t s = 0; s < S_taps; ++s) {
        const int64_t tap = plan.joined ? r * plan.run_pitch + s * channels : (r * S_taps + s) * plan.run_pitch;
        write_tile<S>(total + tap, 0, {to + r * conv.w.h + s * conv.w.w, 1, channels, 0, conv.w.c});
      }
  }
};

// The part of the weights that a task accumulates, and its blocks of pixels: one chunk of one slice and one channel
// group.
class WeightPart {
 protected:
  template <class S>
  WeightPart(const Conv& conv, const WeightPlan<S>& plan, int64_t slice, int64_t channel_group, int64_t chunk)
      : group_(slice / plan.filter_groups),
        k_(slice % plan.filter_groups * plan.filters),
        filters_(std::min(plan.filters, conv.K_per_group() - k_)),
        c_(channel_group * plan.channels),
        channels_(std::min(plan.channels, conv.C_per_group() - c_)),
        begin_(split_begin(plan.blocks.count(), plan.chunks, chunk)),
        end_(split_begin(plan.blocks.count(), plan.chunks, chunk + 1)) {}

  const int64_t group_, k_, filters_;  // output channels [k, k + filters) of the group
  const int64_t c_, channels_;         // input channels [c, c + channels) of the group
  const int64_t begin_, end_;          // blocks
};

// Accumulates a part of the weights.
template <class E, class S>
class WeightTask : WeightPart {
  using T = Acc<S>;
  static constexpr int L = lanes<S>;

 public:
  WeightTask(const WeightCall<E, S>& call, int64_t slice, int64_t channel_group, int64_t chunk)
      : WeightPart(call.conv, call.plan, slice, channel_group, chunk),
        call_(call),
        conv_(call.conv),
        plan_(call.plan),
        run_length_(plan_.joined ? conv_.cols.kernel * channels_ : channels_),
        total_(call.accumulators_of(slice, channel_group, chunk)),
        pitch_(plan_.pitch),
        run_pitch_(plan_.run_pitch) {
    if (begin_ == end_) std::fill_n(total_, plan_.accumulators(), T(0));
    if (!plan_.direct) return;
    total_ = reinterpret_cast<T*>(call.w) + (group_ * conv_.K_per_group() + k_) * conv_.w.n + c_;
    pitch_ = conv_.w.n;
    run_pitch_ = conv_.w.h;
  }

  void run() const {
    for (int64_t block = begin_; block < end_; ++block) accumulate(block);
  }

 private:
  // Accumulates the products of one block.
  void accumulate(int64_t index) const {
    const Block block = plan_.blocks[index];
    Scratch scratch;
    const SourceView<E> y = plan_.y_in_place ? view_of_y(block) : copy_y(block, scratch);
    const SourceView<E> x = plan_.x_in_place ? view_of_x(block) : copy_x(block, scratch);
    OuterGemmTile<E> product{};
    cut_segments(block, plan_.swapped ? x : y, plan_.swapped ? y : x, product, scratch);
    product.add = index > begin_;
    product.pitch = pitch_;

    // Prefetches the next block's operands that are read in place, and y in any case.
    const int64_t across = plan_.swapped ? filters_ : run_length_, down = plan_.swapped ? run_length_ : filters_;
    const Block next = plan_.blocks[std::min(index + 1, plan_.blocks.count() - 1)];
    const bool has_next = index + 1 < end_;
    const int64_t calls = plan_.runs * ceil_div(across, 2 * L) * ceil_div(down, max_rows<2>);
    PrefetchPixels<S> prefetch_y(pixels_of_y(next), group_ * conv_.K_per_group() + k_, has_next ? filters_ : 0, calls);
    PrefetchPixels<S> prefetch_x(plan_.x_in_place ? pixels_of_x(next) : pixels_of_y(next),
                                 group_ * conv_.C_per_group() + c_, has_next && plan_.x_in_place ? channels_ : 0,
                                 calls);
    const auto prefetch = [&]() __attribute__((always_inline)) {
      prefetch_x();
      prefetch_y();
    };
    for (int64_t run = 0; run < plan_.runs; ++run) {
      const int64_t S_taps = conv_.cols.kernel;
      const E* taps = x.data + (plan_.joined ? run * x.tap_row_stride
                                             : run / S_taps * x.tap_row_stride + run % S_taps * x.tap_col_stride);
      T* c = total_ + run * run_pitch_;
      if (plan_.swapped) {
        multiply(product, taps, down, y.data, across, c, prefetch);
      } else {
        multiply(product, y.data, down, taps, across, c, prefetch);
      }
    }
  }

  // Multiplies `rows` rows from `a` on with `lanes_in_all` lanes from `b` on, tile by tile.
  template <class Prefetch>
  INLINE void multiply(OuterGemmTile<E>& product, const E* a, int64_t rows, const E* b, int64_t lanes_in_all, T* c,
                       const Prefetch& prefetch) const {
    for (int64_t lane = 0; lane < lanes_in_all;) {
      const bool wide = lanes_in_all - lane > L;
      const int64_t tiles = ceil_div(rows, wide ? max_rows<2> : max_rows<1>);
      product.b = b + lane;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        prefetch();
        const int64_t m = split_begin(rows, tiles, tile), MR = split_begin(rows, tiles, tile + 1) - m;
        product.a = a + m;
        product.c = c + m * pitch_ + lane;
        if (wide) {
          OuterGemmTiles<E, 2>::by_rows[MR - 1](product);
        } else {
          OuterGemmTiles<E, 1>::by_rows[MR - 1](product);
        }
      }
      lane += wide ? 2 * L : L;
    }
  }

  // Sets the segments of a product: pixels that are evenly spaced in both operands. These are rows, or several rows
  // where they are contiguous.
  static void cut_segments(const Block& block, const SourceView<E>& a, const SourceView<E>& b,
                           OuterGemmTile<E>& product, Scratch& scratch) {
    const int64_t cols = block.q_end - block.q;
    int64_t images = block.n_end - block.n, rows = block.p_end - block.p, length = cols;
    if (a.row_stride == cols * a.col_stride && b.row_stride == cols * b.col_stride) {
      const bool joins_images = a.image_stride == rows * a.row_stride && b.image_stride == rows * b.row_stride;
      length *= rows;
      rows = 1;
      if (joins_images) {
        length *= images;
        images = 1;
      }
    }
    int64_t* a_offset = scratch.take<int64_t>(images * rows);
    int64_t* b_offset = scratch.take<int64_t>(images * rows);
    for (int64_t i = 0; i < images * rows; ++i) {
      a_offset[i] = i / rows * a.image_stride + i % rows * a.row_stride;
      b_offset[i] = i / rows * b.image_stride + i % rows * b.row_stride;
    }
    product.a_offset = a_offset;
    product.b_offset = b_offset;
    product.segments = images * rows;
    product.length = length;
    product.a_step = a.col_stride;
    product.b_step = b.col_stride;
  }

  // The output gradients of a block in place.
  SourceView<E> view_of_y(const Block& block) const {
    return {.data = reinterpret_cast<const E*>(pixels_of_y(block).corner) + group_ * conv_.K_per_group() + k_,
            .image_stride = conv_.y.n,
            .row_stride = conv_.y.h,
            .col_stride = conv_.y.w};
  }

  // The inputs of a block in place, for kernels of one tap.
  SourceView<E> view_of_x(const Block& block) const {
    return {.data = reinterpret_cast<const E*>(pixels_of_x(block).corner) + group_ * conv_.C_per_group() + c_,
            .image_stride = conv_.x.n,
            .row_stride = conv_.rows.stride * conv_.x.h,
            .col_stride = conv_.cols.stride * conv_.x.w};
  }

  SourceView<E> copy_y(const Block& block, Scratch& scratch) const {
    const int64_t rows = block.p_end - block.p, cols = block.q_end - block.q, pitch = spread_pitch<E>(filters_);
    E* copy = scratch.take<E>(block.pixels() * pitch);
    const SourceView<E> view{
        .data = copy, .image_stride = rows * cols * pitch, .row_stride = cols * pitch, .col_stride = pitch};
    const S* first = call_.y + (group_ * conv_.K_per_group() + k_) * conv_.y.c;
    for (int64_t n = block.n; n < block.n_end; ++n)
      for (int64_t p = block.p; p < block.p_end; ++p, copy += cols * pitch) {
        const S* row = first + n * conv_.y.n + p * conv_.y.h + block.q * conv_.y.w;
        call_.reader(n, conv_.y.n)({row, cols, filters_, conv_.y.w, conv_.y.c}, copy, pitch);
      }
    return view;
  }

  SourceView<E> copy_x(const Block& block, Scratch& scratch) const {
    const Patch patch(conv_, block, conv_.cols.kernel == 1 ? spread_pitch<E>(channels_) : channels_);
    E* copy = scratch.take<E>((block.n_end - block.n) * patch.image_pitch());
    for (int64_t n = block.n; n < block.n_end; ++n)
      read_rows(call_.problem, n, patch, 0, patch.rows.size, group_ * conv_.C_per_group() + c_, channels_, call_.x,
                copy + (n - block.n) * patch.image_pitch(), call_.reader(n, conv_.x.n));
    return {.data = copy,
            .image_stride = patch.image_pitch(),
            .row_stride = patch.rows.step * patch.row_pitch(),
            .col_stride = patch.cols.step * patch.pitch,
            .tap_row_stride = conv_.rows.dilation * patch.row_pitch(),
            .tap_col_stride = conv_.cols.dilation * patch.pitch};
  }

  Pixels<S> pixels_of_y(const Block& block) const {
    return Pixels<S>(call_.y + block.n * conv_.y.n + block.p * conv_.y.h + block.q * conv_.y.w, conv_.y, block);
  }

  // For kernels of one tap only.
  Pixels<S> pixels_of_x(const Block& block) const {
    const Strides strides{
        .n = conv_.x.n, .c = conv_.x.c, .h = conv_.rows.stride * conv_.x.h, .w = conv_.cols.stride * conv_.x.w};
    return Pixels<S>(call_.x + block.n * conv_.x.n + conv_.rows.position(block.p, 0) * conv_.x.h +
                         conv_.cols.position(block.q, 0) * conv_.x.w,
                     strides, block);
  }

  const WeightCall<E, S>& call_;
  const Conv& conv_;
  const WeightPlan<S>& plan_;
  const int64_t run_length_;
  T* total_;  // the accumulators, or the weights themselves
  int64_t pitch_, run_pitch_;
};

// Computes w = grad_weight(x, y), where y is the output gradient. Tasks: slices x channel groups x chunks.
template <class E, class S>
void grad_weight(const Conv& conv, const WeightPlan<S>& plan, const S* x, const S* y, S* w) {
  Scratch scratch;
  WeightCall<E, S> call(conv, plan, x, y, w, scratch);
  const double pixels = double(call.conv.N) * conv.rows.out * conv.cols.out / plan.chunks;
  for (call.first = 0; call.first < call.slices(); call.first += call.per_round) {
    const int64_t slices = std::min(call.per_round, call.slices() - call.first);
    parallel_for(slices * plan.channel_groups * plan.chunks, pixels * plan.filters * plan.runs * plan.run_length,
                 [&](int64_t task) {
                   const int64_t channel_group = task % plan.channel_groups, rest = task / plan.channel_groups;
                   WeightTask<E, S>(call, call.first + rest % slices, channel_group, rest / slices).run();
                 });
    if (plan.direct) continue;
    const int64_t parts = plan.swapped ? plan.runs : plan.filters;
    parallel_for(slices * parts, double(plan.chunks) * plan.accumulators() / parts * plan.channel_groups,
                 [&](int64_t task) { call.store_part(call.first + task / parts, task % parts); });
  }
}

}  // namespace gemm

// winograd uses these, too: gemm.cpp of each instruction set instantiates them.
#define TORCHCONV_GEMM_OF(S, declares)                                                                             \
  declares template void gemm::correlate(const Correlation&, const gemm::Plan<Acc<S>, S>&, const S*, const S*, S*, \
                                         const Epilogue&);                                                         \
  declares template void gemm::correlate_blocks(const Correlation&, const gemm::Plan<Acc<S>, S>&, int64_t,         \
                                                std::span<const Block>, const S*, const S*, S*, const Epilogue&);  \
  declares template void gemm::grad_weight<Acc<S>>(const Conv&, const gemm::WeightPlan<S>&, const S*, const S*, S*);

#define TORCHCONV_GEMM(declares)        \
  TORCHCONV_GEMM_OF(double, declares)   \
  TORCHCONV_GEMM_OF(float, declares)    \
  TORCHCONV_GEMM_OF(BFloat16, declares) \
  TORCHCONV_GEMM_OF(Half, declares)

TORCHCONV_GEMM(extern)
