// gemm, the third operator: grad_weight as an implicit matrix product. The reduction runs over pixels; lanes are the
// input channels, or taps x channels where these are neighbours in the patch, and rows are output channels.
//
// The pixels are cut into chunks, a number that depends on the problem alone. Each chunk is summed up block by block
// into a matrix of its own, and these are added up in order: short sums, in the same order on any number of threads.

namespace gemm {

struct WeightPlan {
  static constexpr int64_t patch_bytes = 256 << 10;
  static constexpr int64_t sums_bytes = 8 << 20;  // of all chunks
  static constexpr int64_t units = 64;

  int64_t channels, channel_groups;  // C of a unit
  int64_t filters, filter_groups;    // K of a unit
  int64_t images, rows, cols;        // of a block of pixels
  int64_t blocks, chunks;
  bool joined;                          // taps of a kernel row and channels are one run of lanes
  int64_t runs, run_length, run_pitch;  // lanes: `runs` rows of `run_length`
  bool x_in_place, y_in_place;
  bool possible;

  int64_t sums() const { return filters * runs * run_pitch; }
};

template <class S>
WeightPlan weight_plan(const Conv& conv) {
  using T = Sum<S>;
  constexpr int L = lanes<S>, size = sizeof(T);
  WeightPlan plan{};
  const int64_t C = conv.C_per_group(), K = conv.K_per_group(), P = conv.rows.out, Q = conv.cols.out;
  const int64_t taps = conv.rows.kernel * conv.cols.kernel;
  const int64_t pixels = 256;

  const auto share = [](int64_t all, int64_t most, int64_t multiple) {
    const int64_t parts = std::max<int64_t>(1, (all - 1) / most + 1);
    return std::max<int64_t>(1, std::min(all, ((all - 1) / parts / multiple + 1) * multiple));
  };
  plan.filters = share(K, 128, most_rows<2>);
  plan.channels = share(C, 256, 2 * L);
  const auto bytes = [&](int64_t rows, int64_t cols) {
    const Patch patch(conv, {0, 1, 0, rows, 0, cols}, plan.channels);
    return double(patch.rows.size) * patch.cols.size * plan.channels * size;
  };
  const auto cut = [&] {
    plan.images = plan.rows = 1, plan.cols = Q;
    if (bytes(1, Q) > WeightPlan::patch_bytes || Q > 2 * pixels) {
      plan.cols = std::min(Q, pixels);
      while (plan.cols > 1 && bytes(1, plan.cols) > WeightPlan::patch_bytes) plan.cols = (plan.cols + 1) / 2;
      return;
    }
    plan.rows = std::clamp<int64_t>(pixels / Q, 1, P);
    while (plan.rows > 1 && bytes(plan.rows, Q) > WeightPlan::patch_bytes) --plan.rows;
    plan.rows = (P - 1) / ((P - 1) / plan.rows + 1) + 1;
    if (plan.rows < P) return;
    plan.images = std::clamp<int64_t>(pixels / (P * Q), 1, std::max<int64_t>(1, conv.N));
    while (plan.images > 1 && plan.images * bytes(P, Q) > WeightPlan::patch_bytes) --plan.images;
  };
  for (cut(); plan.images * plan.rows * plan.cols < 128 && plan.channels > 2 * L; cut())
    plan.channels = share(C, plan.channels / 2, 2 * L);
  plan.channel_groups = std::max<int64_t>(1, (C - 1) / plan.channels + 1);
  plan.filter_groups = std::max<int64_t>(1, (K - 1) / plan.filters + 1);
  plan.blocks = ((conv.N - 1) / plan.images + 1) * ((P - 1) / plan.rows + 1) * ((Q - 1) / plan.cols + 1);

  plan.joined = conv.cols.kernel == 1 || conv.cols.dilation == 1;
  plan.runs = plan.joined ? conv.rows.kernel : taps;
  plan.run_length = plan.joined ? conv.cols.kernel * plan.channels : plan.channels;
  plan.run_pitch = ((plan.run_length - 1) / L + 1) * L;

  const double all = double(plan.sums()) * plan.channel_groups * size;  // of one group of filters
  plan.chunks = std::clamp<int64_t>(WeightPlan::units / (conv.groups * plan.channel_groups * plan.filter_groups), 1,
                                    std::max<int64_t>(1, plan.blocks));
  plan.chunks =
      std::clamp<int64_t>(int64_t(WeightPlan::sums_bytes / all / plan.filter_groups / conv.groups), 1, plan.chunks);
  plan.possible =
      plan.images * bytes(plan.rows, plan.cols) <= 4.0 * WeightPlan::patch_bytes && all <= WeightPlan::sums_bytes;

  const bool plain = std::is_same_v<S, T>;
  plan.x_in_place = plain && taps == 1 && conv.x.c == 1 && C % L == 0 && conv.rows.pad == 0 && conv.cols.pad == 0 &&
                    conv.rows.position(P - 1, 0) < conv.rows.in && conv.cols.position(Q - 1, 0) < conv.cols.in;
  plan.y_in_place = plain && conv.y.c == 1;
  return plan;
}

template <class S>
void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
  using T = Sum<S>;
  constexpr int L = lanes<S>;
  const WeightPlan plan = weight_plan<S>(conv);
  const int64_t C = conv.C_per_group(), K = conv.K_per_group(), P = conv.rows.out, Q = conv.cols.out;
  const int64_t row_blocks = (P - 1) / plan.rows + 1, col_blocks = (Q - 1) / plan.cols + 1;
  const Correlation problem = forward_correlation(conv);
  Scratch scratch;

  // Rounds over groups of filters, so that the sums stay bounded. A slice is one group of filters and of channels.
  const int64_t all_slices = conv.groups * plan.filter_groups, channel_groups = plan.channel_groups;
  const int64_t slice_sums = plan.sums() * channel_groups * plan.chunks;
  const int64_t per_round =
      std::clamp<int64_t>(WeightPlan::sums_bytes / int64_t(sizeof(T)) / slice_sums, 1, all_slices);
  T* sums = scratch.take<T>(per_round * slice_sums);
  for (int64_t first = 0; first < all_slices; first += per_round) {
    const int64_t slices = std::min(per_round, all_slices - first);
    const double work = double(conv.N) * P * Q / plan.chunks * plan.filters * plan.runs * plan.run_length;
    parallel_for(slices * channel_groups * plan.chunks, work, [&](int64_t unit) {
      const int64_t cg = unit % channel_groups, slice = first + unit / channel_groups % slices,
                    chunk = unit / channel_groups / slices;
      const int64_t group = slice / plan.filter_groups, k = slice % plan.filter_groups * plan.filters;
      const int64_t filters = std::min(plan.filters, K - k), c = cg * plan.channels,
                    channels = std::min(plan.channels, C - c);
      T* total = sums + (((slice - first) * channel_groups + cg) * plan.chunks + chunk) * plan.sums();
      const int64_t run_length = plan.joined ? conv.cols.kernel * channels : channels;

      const FlushSubnormals flush;
      const int64_t begin = plan.blocks * chunk / plan.chunks, end = plan.blocks * (chunk + 1) / plan.chunks;
      if (begin == end) std::fill_n(total, plan.sums(), T(0));
      for (int64_t b = begin; b < end; ++b) {
        const int64_t q0 = b % col_blocks * plan.cols, p0 = b / col_blocks % row_blocks * plan.rows,
                      n0 = b / col_blocks / row_blocks * plan.images;
        const Block block{n0, std::min(n0 + plan.images, conv.N), p0, std::min(p0 + plan.rows, P),
                          q0, std::min(q0 + plan.cols, Q)};
        const int64_t images = block.n_end - block.n, rows = block.p_end - block.p, cols = block.q_end - block.q;
        Scratch scratch;

        // The operands: pixel (n, p, q) of y at n * a_n + p * a_p + q * a_q, and of x the like.
        const T *a, *source;
        int64_t a_n, a_p, a_q, b_n, b_p, b_q, tap_h = 0, tap_w = 0;
        if (plan.y_in_place) {
          a = reinterpret_cast<const T*>(y) + block.n * conv.y.n + block.p * conv.y.h + block.q * conv.y.w + group * K +
              k;
          a_n = conv.y.n, a_p = conv.y.h, a_q = conv.y.w;
        } else {
          T* copy = scratch.take<T>(block.pixels() * filters);
          a_q = filters, a_p = cols * a_q, a_n = rows * a_p;
          for (int64_t n = 0; n < images; ++n)
            for (int64_t p = 0; p < rows; ++p)
              read_tile(y + (block.n + n) * conv.y.n + (group * K + k) * conv.y.c + (block.p + p) * conv.y.h +
                            block.q * conv.y.w,
                        conv.y.w, conv.y.c, cols, filters, copy + n * a_n + p * a_p, a_q);
          a = copy;
        }
        if (plan.x_in_place) {
          source = reinterpret_cast<const T*>(x) + block.n * conv.x.n + group * C + c +
                   conv.rows.position(block.p, 0) * conv.x.h + conv.cols.position(block.q, 0) * conv.x.w;
          b_n = conv.x.n, b_p = conv.rows.stride * conv.x.h, b_q = conv.cols.stride * conv.x.w;
        } else {
          const Patch patch(conv, block, channels);
          T* copy = scratch.take<T>(images * patch.image_pitch());
          read_patch(problem, block, patch, group * C + c, channels, x, copy);
          source = copy;
          b_n = patch.image_pitch(), b_p = patch.rows.step * patch.row_pitch(), b_q = patch.cols.step * patch.pitch;
          tap_h = conv.rows.dilation * patch.row_pitch(), tap_w = conv.cols.dilation * patch.pitch;
        }

        // Segments of pixels that are evenly spaced in both: rows, or more where rows follow one another.
        int64_t length = cols, segments_p = rows, segments_n = images;
        if (a_p == cols * a_q && b_p == cols * b_q) {
          length *= rows, segments_p = 1;
          if (a_n == rows * a_p && b_n == rows * b_p) length *= images, segments_n = 1;
        }
        int64_t* a_offset = scratch.take<int64_t>(segments_n * segments_p);
        int64_t* b_offset = scratch.take<int64_t>(segments_n * segments_p);
        for (int64_t n = 0, i = 0; n < segments_n; ++n)
          for (int64_t p = 0; p < segments_p; ++p, ++i)
            a_offset[i] = n * a_n + p * a_p, b_offset[i] = n * b_n + p * b_p;

        OuterProduct<T> product{};
        product.a_offset = a_offset, product.b_offset = b_offset, product.segments = segments_n * segments_p;
        product.length = length, product.a_step = a_q, product.b_step = b_q;
        product.add = b > begin, product.pitch = plan.runs * plan.run_pitch;
        for (int64_t run = 0; run < plan.runs; ++run) {
          const T* taps =
              source + (plan.joined ? run * tap_h : run / conv.cols.kernel * tap_h + run % conv.cols.kernel * tap_w);
          for (int64_t lane = 0; lane < run_length;) {
            const bool wide = run_length - lane > L;
            const int most = wide ? most_rows<2> : most_rows<1>;
            const int64_t tiles = (filters - 1) / most + 1;
            product.b = taps + lane;
            for (int64_t tile = 0; tile < tiles; ++tile) {
              const int64_t m = filters * tile / tiles, MR = filters * (tile + 1) / tiles - m;
              product.a = a + m;
              product.c = total + m * product.pitch + run * plan.run_pitch + lane;
              if (wide) {
                multiply_outer_rows<T, 2>[MR - 1](product);
              } else {
                multiply_outer_rows<T, 1>[MR - 1](product);
              }
            }
            lane += wide ? 2 * L : L;
          }
        }
      }
    });

    // Adds up the chunks, filter by filter, and stores them.
    parallel_for(
        slices * plan.filters, double(plan.chunks) * plan.runs * plan.run_length * channel_groups, [&](int64_t unit) {
          const int64_t slice = first + unit / plan.filters, filter = unit % plan.filters;
          const int64_t group = slice / plan.filter_groups, k = slice % plan.filter_groups * plan.filters + filter;
          if (k >= K) return;
          const int64_t size = plan.runs * plan.run_pitch;
          for (int64_t cg = 0; cg < channel_groups; ++cg) {
            T* total = sums + ((slice - first) * channel_groups + cg) * plan.chunks * plan.sums() + filter * size;
            for (int64_t chunk = 1; chunk < plan.chunks; ++chunk)
              for (int64_t i = 0; i < size; i += L)
                store(total + i, load(total + i) + load(total + chunk * plan.sums() + i));
            const int64_t c = cg * plan.channels, channels = std::min(plan.channels, C - c);
            S* to = w + (group * K + k) * conv.w.n + c * conv.w.c;
            const Finish<T> finish;
            const int64_t run_length = plan.joined ? conv.cols.kernel * channels : channels;
            if (plan.joined && run_length == plan.run_pitch && conv.w.h == conv.cols.kernel * conv.w.w)
              write_tile(total, channels, conv.rows.kernel * conv.cols.kernel, channels, to, conv.w.w, conv.w.c, finish,
                         0);
            else
              for (int64_t r = 0; r < conv.rows.kernel; ++r)
                for (int64_t s = 0; s < conv.cols.kernel; ++s)
                  write_tile(plan.joined ? total + r * plan.run_pitch + s * channels
                                         : total + (r * conv.cols.kernel + s) * plan.run_pitch,
                             0, 1, channels, to + r * conv.w.h + s * conv.w.w, 0, conv.w.c, finish, 0);
          }
        });
  }
}

}  // namespace gemm
