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

template <class S>
struct WeightPlan {
  static constexpr int64_t block_pixels = 256;
  static constexpr int64_t patch_bytes = 256 << 10;
  static constexpr int64_t accumulator_bytes = 8 << 20;  // the accumulators of all chunks, in one round
  static constexpr int64_t tasks = 64;                   // the number of tasks to aim for
  static constexpr int64_t chunk_pixels = 768;           // minimum per chunk: adding the chunks is not free

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
    std::string text = "blocks of " + std::to_string(blocks.pixels()) + " pixels in " + std::to_string(chunks) +
                       (chunks == 1 ? " chunk, " : " chunks, ") + std::to_string(channels) + " input channels and " +
                       std::to_string(filters) + " output channels a task, lanes are " +
                       (swapped ? "output channels" : "input channels");
    if (x_in_place) text += ", x is read in place";
    if (y_in_place) text += ", y is read in place";
    return text;
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

// Plans grad_weight. Not `possible` if patches or accumulators exceed the working memory.
template <class E, class S>
WeightPlan<S> weight_plan(const Conv& whole) {
  using T = Acc<S>;
  const Conv conv = half_batch<E>(whole);
  constexpr int L = lanes<S>, size = sizeof(T);
  using Plan = WeightPlan<S>;
  const int64_t C = conv.C_per_group(), K = conv.K_per_group(), P = conv.rows.out, Q = conv.cols.out;
  const int64_t taps = conv.rows.kernel * conv.cols.kernel;
  // The size of equal parts of `all`, of about `most` or fewer, rounded up to a multiple.
  const auto share = [](int64_t all, int64_t most, int64_t multiple) {
    const int64_t parts = std::max<int64_t>(1, (all - 1) / most + 1);
    return std::max<int64_t>(1, std::min(all, ((all - 1) / parts / multiple + 1) * multiple));
  };
  const auto cut = [&](int64_t channels) { return Blocks<S>(conv, Plan::block_pixels, channels, Plan::patch_bytes); };
  // Fewer channels per task while its blocks have fewer than 128 pixels: this makes the reductions longer.
  int64_t channels = share(C, 256, 2 * L);
  while (channels > 2 * L && cut(channels).pixels() < 128) channels = share(C, channels / 2, 2 * L);
  // Chunks have at least chunk_pixels pixels. Tasks become smaller where this leaves too few of them.
  const double max_chunks = std::max(1.0, double(conv.N) * P * Q / Plan::chunk_pixels);
  int64_t filters = share(K, 128, max_rows<2>);
  // Fewer filters while their accumulators take too much memory: otherwise wide layers would go to the reference.
  while (filters > max_rows<2> && double(filters) * taps * C * size > 0.75 * Plan::accumulator_bytes)
    filters = share(K, filters / 2, max_rows<2>);
  const auto tasks = [&] { return max_chunks * conv.groups * ((C - 1) / channels + 1) * ((K - 1) / filters + 1); };
  while (tasks() < Plan::tasks / 2 && std::max(channels, filters) > 64)
    channels > filters ? channels = share(C, channels / 2, 2 * L) : filters = share(K, filters / 2, max_rows<2>);
  Plan plan{cut(channels)};
  plan.channels = channels, plan.filters = filters;
  plan.channel_groups = std::max<int64_t>(1, (C - 1) / plan.channels + 1);
  plan.filter_groups = std::max<int64_t>(1, (K - 1) / plan.filters + 1);

  plan.joined = conv.cols.kernel == 1 || conv.cols.dilation == 1;
  plan.runs = plan.joined ? conv.rows.kernel : taps;
  plan.run_length = plan.joined ? conv.cols.kernel * plan.channels : plan.channels;
  const auto padded = [](int64_t lanes) { return (lanes - 1) / L * L + L; };
  const auto filled = [&](int64_t lanes) { return double(lanes) / padded(lanes); };
  plan.swapped = filled(plan.filters) > filled(plan.run_length);
  if (plan.swapped) {  // whole vectors, so that none reads beyond the end of y where y is read in place
    plan.filters = share(K, plan.filters, 2 * L);
    plan.filter_groups = std::max<int64_t>(1, (K - 1) / plan.filters + 1);
  }
  plan.pitch = plan.swapped ? padded(plan.filters) : plan.runs * padded(plan.run_length);
  plan.run_pitch = plan.swapped ? plan.run_length * plan.pitch : padded(plan.run_length);

  const double all = double(plan.accumulators()) * plan.channel_groups * size;  // bytes, of one filter group
  plan.chunks = std::clamp<int64_t>(Plan::tasks / (conv.groups * plan.channel_groups * plan.filter_groups), 1,
                                    std::min<int64_t>(max_chunks, plan.blocks.count()));
  plan.chunks =
      std::clamp<int64_t>(int64_t(Plan::accumulator_bytes / all / plan.filter_groups / conv.groups), 1, plan.chunks);
  plan.possible = plan.blocks.patch_bytes <= 4.0 * Plan::patch_bytes && all <= Plan::accumulator_bytes;

  const bool plain = std::is_same_v<S, T>;
  plan.x_in_place = plain && taps == 1 && conv.x.c == 1 && (C % L == 0 || plan.swapped) && conv.rows.pad == 0 &&
                    conv.cols.pad == 0 && conv.rows.position(P - 1, 0) < conv.rows.in &&
                    conv.cols.position(Q - 1, 0) < conv.cols.in;
  plan.y_in_place = plain && conv.y.c == 1 && (K % L == 0 || !plan.swapped);
  plan.direct = plain && plan.chunks == 1 && !plan.swapped && conv.w.c == 1 && plan.run_length % L == 0 &&
                (taps == 1 || (plan.joined && plan.channels == C && conv.w.w == C)) && C % plan.channels % L == 0;

  // Fewer filters per task for many threads. No reduction depends on that.
  const int64_t multiple = plan.swapped ? 2 * L : max_rows<2>;
  while (conv.groups * plan.channel_groups * plan.filter_groups * plan.chunks < thread_count()) {
    const int64_t fewer = share(K, std::max<int64_t>(1, plan.filters / 2), multiple);
    if (fewer == plan.filters) break;
    plan.filters = fewer, plan.filter_groups = (K - 1) / fewer + 1;
    if (plan.swapped) plan.pitch = padded(fewer), plan.run_pitch = plan.run_length * plan.pitch;
  }
  return plan;
}

// The estimated cycles per output pixel of grad_weight, in float32.
inline double weight_cost(const Conv& conv) {
  const auto plan = weight_plan<float, float>(conv);
  const auto vectors = [](int64_t lanes) { return (lanes - 1) / Simd<float>::lanes + 1; };
  const int64_t rows = plan.runs * plan.run_length * plan.channel_groups, K = conv.K_per_group();
  return double(plan.swapped ? rows * vectors(K) : plan.runs * vectors(plan.run_length) * plan.channel_groups * K) +
         copies(conv);
}

// Computes w = grad_weight(x, y), where y is the output gradient.
template <class E, class S>
void grad_weight(const Conv& all, const WeightPlan<S>& plan, const S* x, const S* y, S* w) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  using Plan = WeightPlan<S>;
  const Conv conv = half_batch<E>(all);
  const int64_t C = conv.C_per_group(), K = conv.K_per_group(), P = conv.rows.out, Q = conv.cols.out;
  const Correlation problem = forward_correlation(conv);
  Scratch scratch;

  // A function with the arguments of read_tile that reads a tile of image n, of a tensor whose images are `image`
  // elements apart. With bf16 pairs, it reads images n and n + conv.N.
  const auto reader = [&](int64_t n, int64_t image) {
    return [high = n + conv.N < all.N ? conv.N * image : no_second](const StridedMatrix<const S>& from, E* to,
                                                                    int64_t pitch, int64_t ahead = 0) {
      if constexpr (values_per<E> > 1) {
        read_elements(from, high, to, pitch);
      } else {
        (void)high;
        read_tile(from, to, pitch, ahead);
      }
    };
  };
  // The pixels of y and of x that a block reads; those of x for kernels of one tap only.
  const auto gradient = [&](const Block& block) {
    return Pixels<S>(y + block.n * conv.y.n + block.p * conv.y.h + block.q * conv.y.w, conv.y, block);
  };
  const auto input = [&](const Block& block) {
    const Strides strides{conv.x.n, conv.x.c, conv.rows.stride * conv.x.h, conv.cols.stride * conv.x.w};
    return Pixels<S>(
        x + block.n * conv.x.n + conv.rows.position(block.p, 0) * conv.x.h + conv.cols.position(block.q, 0) * conv.x.w,
        strides, block);
  };

  // The slices are processed in rounds, so that the accumulators stay below accumulator_bytes. A slice is one filter
  // group of one group of the convolution.
  const int64_t all_slices = conv.groups * plan.filter_groups, channel_groups = plan.channel_groups;
  const int64_t slice_sums = plan.accumulators() * channel_groups * plan.chunks;
  const int64_t per_round =
      std::clamp<int64_t>(Plan::accumulator_bytes / int64_t(sizeof(T)) / slice_sums, 1, all_slices);
  T* accumulators = scratch.take<T>(per_round * slice_sums);
  for (int64_t first = 0; first < all_slices; first += per_round) {
    const int64_t slices = std::min(per_round, all_slices - first);
    const double work = double(conv.N) * P * Q / plan.chunks * plan.filters * plan.runs * plan.run_length;
    parallel_for(slices * channel_groups * plan.chunks, work, [&](int64_t task) {
      const int64_t cg = task % channel_groups, slice = first + task / channel_groups % slices,
                    chunk = task / channel_groups / slices;
      const int64_t group = slice / plan.filter_groups, k = slice % plan.filter_groups * plan.filters;
      const int64_t filters = std::min(plan.filters, K - k), c = cg * plan.channels,
                    channels = std::min(plan.channels, C - c);
      T* total = accumulators + (((slice - first) * channel_groups + cg) * plan.chunks + chunk) * plan.accumulators();
      const int64_t run_length = plan.joined ? conv.cols.kernel * channels : channels;

      const int64_t blocks = plan.blocks.count();
      const int64_t begin = blocks * chunk / plan.chunks, end = blocks * (chunk + 1) / plan.chunks;
      if (begin == end) std::fill_n(total, plan.accumulators(), T(0));
      int64_t pitch = plan.pitch, run_pitch = plan.run_pitch;
      if (plan.direct) {
        total = reinterpret_cast<T*>(w) + (group * K + k) * conv.w.n + c;
        pitch = conv.w.n, run_pitch = conv.w.h;
      }
      for (int64_t b = begin; b < end; ++b) {
        const Block block = plan.blocks[b];
        const int64_t images = block.n_end - block.n, rows = block.p_end - block.p, cols = block.q_end - block.q;
        Scratch scratch;

        // The operands: pixel (n, p, q) of y is at a + n * a_n + p * a_p + q * a_q, and the pixel of x under the first
        // tap is at source + n * b_n + p * b_p + q * b_q.
        const E *a, *source;
        int64_t a_n, a_p, a_q, b_n, b_p, b_q, tap_h = 0, tap_w = 0;
        if (plan.y_in_place) {
          a = reinterpret_cast<const E*>(y) + block.n * conv.y.n + block.p * conv.y.h + block.q * conv.y.w + group * K +
              k;
          a_n = conv.y.n, a_p = conv.y.h, a_q = conv.y.w;
        } else {
          a_q = spread_pitch<E>(filters), a_p = cols * a_q, a_n = rows * a_p;
          E* copy = scratch.take<E>(block.pixels() * a_q);
          for (int64_t n = 0; n < images; ++n)
            for (int64_t p = 0; p < rows; ++p)
              reader(block.n + n, conv.y.n)({y + (block.n + n) * conv.y.n + (group * K + k) * conv.y.c +
                                                 (block.p + p) * conv.y.h + block.q * conv.y.w,
                                             cols, filters, conv.y.w, conv.y.c},
                                            copy + n * a_n + p * a_p, a_q);
          a = copy;
        }
        if (plan.x_in_place) {
          source = reinterpret_cast<const E*>(x) + block.n * conv.x.n + group * C + c +
                   conv.rows.position(block.p, 0) * conv.x.h + conv.cols.position(block.q, 0) * conv.x.w;
          b_n = conv.x.n, b_p = conv.rows.stride * conv.x.h, b_q = conv.cols.stride * conv.x.w;
        } else {
          const Patch patch(conv, block, conv.cols.kernel == 1 ? spread_pitch<E>(channels) : channels);
          E* copy = scratch.take<E>(images * patch.image_pitch());
          for (int64_t n = 0; n < images; ++n)
            read_rows(problem, block.n + n, patch, 0, patch.rows.size, group * C + c, channels, x,
                      copy + n * patch.image_pitch(), reader(block.n + n, conv.x.n));
          source = copy;
          b_n = patch.image_pitch(), b_p = patch.rows.step * patch.row_pitch(), b_q = patch.cols.step * patch.pitch;
          tap_h = conv.rows.dilation * patch.row_pitch(), tap_w = conv.cols.dilation * patch.pitch;
        }

        // Segments of pixels that are evenly spaced in both operands: rows, or several rows where these are contiguous.
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

        // Prefetches the next block's operands that are read in place, and y in any case.
        const int64_t across = plan.swapped ? filters : run_length, down = plan.swapped ? run_length : filters;
        const Block next = plan.blocks[std::min(b + 1, blocks - 1)];
        const int64_t calls = plan.runs * ((across - 1) / (2 * L) + 1) * ((down - 1) / max_rows<2> + 1);
        PrefetchPixels<S> prefetch_y(gradient(next), group * K + k, b + 1 < end ? filters : 0, calls);
        PrefetchPixels<S> prefetch_x(plan.x_in_place ? input(next) : gradient(next), group * C + c,
                                     b + 1 < end && plan.x_in_place ? channels : 0, calls);
        OuterGemmTile<E> product{};
        product.a_offset = a_offset, product.b_offset = b_offset, product.segments = segments_n * segments_p;
        product.length = length, product.a_step = a_q, product.b_step = b_q;
        if (plan.swapped) std::swap(product.a_offset, product.b_offset), std::swap(product.a_step, product.b_step);
        product.add = b > begin, product.pitch = pitch;
        for (int64_t run = 0; run < plan.runs; ++run) {
          const E* taps =
              source + (plan.joined ? run * tap_h : run / conv.cols.kernel * tap_h + run % conv.cols.kernel * tap_w);
          for (int64_t lane = 0; lane < across;) {
            const bool wide = across - lane > L;
            const int most = wide ? max_rows<2> : max_rows<1>;
            const int64_t tiles = (down - 1) / most + 1;
            product.b = (plan.swapped ? a : taps) + lane;
            for (int64_t tile = 0; tile < tiles; ++tile) {
              prefetch_x(), prefetch_y();
              const int64_t m = down * tile / tiles, MR = down * (tile + 1) / tiles - m;
              product.a = (plan.swapped ? taps : a) + m;
              product.c = total + m * pitch + run * run_pitch + lane;
              if (wide) {
                OuterGemmTiles<E, 2>::by_rows[MR - 1](product);
              } else {
                OuterGemmTiles<E, 1>::by_rows[MR - 1](product);
              }
            }
            lane += wide ? 2 * L : L;
          }
        }
      }
    });

    if (plan.direct) continue;
    // Adds the accumulators of all chunks, filter by filter or run by run, and stores the results.
    const int64_t parts = plan.swapped ? plan.runs : plan.filters, size = plan.accumulators() / parts;
    parallel_for(slices * parts, double(plan.chunks) * size * channel_groups, [&](int64_t task) {
      const int64_t slice = first + task / parts, part = task % parts;
      const int64_t group = slice / plan.filter_groups, k = slice % plan.filter_groups * plan.filters;
      const int64_t filters = std::min(plan.filters, K - k);
      if (!plan.swapped && part >= filters) return;
      for (int64_t cg = 0; cg < channel_groups; ++cg) {
        T* total =
            accumulators + ((slice - first) * channel_groups + cg) * plan.chunks * plan.accumulators() + part * size;
        reduce_chunks(total, size, plan.chunks, plan.accumulators());
        const int64_t c = cg * plan.channels, channels = std::min(plan.channels, C - c);
        S* to = w + (group * K + k) * conv.w.n + c * conv.w.c;
        if (plan.swapped) {
          for (int64_t s = 0; s < (plan.joined ? conv.cols.kernel : 1); ++s) {
            const int64_t r_at = plan.joined ? part : part / conv.cols.kernel,
                          s_at = plan.joined ? s : part % conv.cols.kernel;
            write_tile<S>(total + s * channels * plan.pitch, plan.pitch,
                          {to + r_at * conv.w.h + s_at * conv.w.w, channels, filters, conv.w.c, conv.w.n});
          }
          continue;
        }
        to += part * conv.w.n;
        if (plan.joined && conv.cols.kernel * channels == plan.run_pitch && conv.w.h == conv.cols.kernel * conv.w.w)
          write_tile<S>(total, channels, {to, conv.rows.kernel * conv.cols.kernel, channels, conv.w.w, conv.w.c});
        else
          for (int64_t r = 0; r < conv.rows.kernel; ++r)
            for (int64_t s = 0; s < conv.cols.kernel; ++s)
              write_tile<S>(plan.joined ? total + r * plan.run_pitch + s * channels
                                        : total + (r * conv.cols.kernel + s) * plan.run_pitch,
                            0, {to + r * conv.w.h + s * conv.w.w, 1, channels, 0, conv.w.c});
      }
    });
  }
}

}  // namespace gemm
