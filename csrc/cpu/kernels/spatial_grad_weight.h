// spatial: grad_weight for few channels. A register tile is some output channels x some taps. Products of vectors of
// pixels are accumulated lane by lane, and the lanes are added at the end.

namespace spatial {

constexpr double max_accumulators =
    4096;  // vectors of accumulators; with more, adding their lanes takes most of the time

// The estimated cycles per output pixel of grad_weight, in float32; infinite above max_accumulators.
inline double weight_cost(const Conv& conv) {
  const double accumulators = double(conv.rows.kernel) * conv.cols.kernel * conv.C_per_group() * conv.K_per_group();
  if (accumulators > max_accumulators) return std::numeric_limits<double>::infinity();
  return cost(accumulators, false, conv);
}

// How grad_weight is cut into tasks: groups x chunks of blocks of pixels. Each chunk has separate accumulators.
template <class S>
struct WeightPlan {
  static constexpr int64_t patch_bytes = 128 << 10;
  static constexpr int64_t accumulator_bytes = 8 << 20;  // the accumulators of all chunks
  static constexpr int64_t tasks = 64;                   // the number of tasks to aim for

  int64_t taps;  // of all input channels of a group, rounded up to whole tiles
  int64_t chunks;
  bool possible;
  Blocks<S> blocks;

  std::string describe() const {
    return "blocks of " + std::to_string(blocks.pixels()) + " pixels in " + std::to_string(chunks) +
           (chunks == 1 ? " chunk" : " chunks") + ", lanes are pixels";
  }
};

constexpr int taps_per_tile = registers > 16 ? 4 : 2;
constexpr int filters_per_tile = 6;

// Plans grad_weight. Not `possible` if patches or accumulators exceed the working memory.
template <class S>
WeightPlan<S> weight_plan(const Conv& conv) {
  constexpr int L = lanes<S>, size = sizeof(Acc<S>);
  using Plan = WeightPlan<S>;
  const int64_t C = conv.C_per_group(), K = conv.K_per_group();
  Plan plan{(C * conv.rows.kernel * conv.cols.kernel - 1) / taps_per_tile * taps_per_tile + taps_per_tile, 1, false,
            Blocks<S>(conv, 1024, std::max(C, K), Plan::patch_bytes)};
  const double accumulators = double(plan.taps) * conv.K * L * size;
  plan.chunks =
      std::clamp<int64_t>(std::min<double>(Plan::tasks / double(conv.groups), Plan::accumulator_bytes / accumulators),
                          1, plan.blocks.count());
  plan.possible = plan.blocks.patch_bytes <= 8.0 * Plan::patch_bytes &&
                  planes_bytes(conv, plan.blocks, C) <= max_planes_bytes && accumulators <= Plan::accumulator_bytes;
  return plan;
}

// The arguments of multiply_weight: accumulators[m][t][lane] += the products of rows of pixels, y[m * y_pitch + i]
// times x[at[row] + offset[t] + i]. Rows of y are y_row apart, rows of accumulators `pitch`.
template <class T>
struct WeightProduct {
  const T *x, *y;
  int64_t y_pitch;
  const int64_t *at, *offset;
  int64_t rows, cols, y_row;
  T* accumulators;
  int64_t pitch;
};

// Accumulates a tile of MR output channels x taps_per_tile taps.
template <class T, int MR>
void multiply_weight(const WeightProduct<T>& product) {
  using V = typename Simd<T>::V;
  constexpr int L = Simd<T>::lanes, NT = taps_per_tile;
  V acc[MR][NT] = {};
  const T *x[NT], *y = product.y;
  unroll<NT>([&](auto t) __attribute__((always_inline)) { x[t] = product.x + product.offset[t]; });
  for (int64_t row = 0; row < product.rows; ++row, y += product.y_row) {
    const int64_t at = product.at[row];
    const auto add = [&](int64_t i, auto... count) __attribute__((always_inline)) {
      V pixels[NT];
      unroll<NT>([&](auto t) __attribute__((always_inline)) { pixels[t] = load(x[t] + at + i, count...); });
      unroll<MR>([&](auto m) __attribute__((always_inline)) {
        const V gradient = load(y + m * product.y_pitch + i, count...);
        unroll<NT>([&](auto t) __attribute__((always_inline)) { acc[m][t] = fma(gradient, pixels[t], acc[m][t]); });
      });
    };
    int64_t i = 0;
    for (; i + L <= product.cols; i += L) add(i);
    if (i < product.cols) add(i, int(product.cols - i));
  }
  unroll<MR>([&](auto m) __attribute__((always_inline)) {
    unroll<NT>([&](auto t) __attribute__((always_inline)) {
      T* c = product.accumulators + m * product.pitch + t * L;
      store(c, load(c) + acc[m][t]);
    });
  });
}

template <class T, int... m>
constexpr auto weight_table(std::integer_sequence<int, m...>) {
  return std::array<void (*)(const WeightProduct<T>&), sizeof...(m)>{multiply_weight<T, m + 1>...};
}

// multiply_weight, indexed by the number of output channels minus one.
template <class T>
constexpr auto multiply_weight_rows = weight_table<T>(std::make_integer_sequence<int, filters_per_tile>());

// Computes w = grad_weight(x, y), where y is the output gradient.
template <class S>
void grad_weight(const Conv& conv, const WeightPlan<S>& plan, const S* x, const S* y, S* w) {
  using T = Acc<S>;
  constexpr int L = lanes<S>, NT = taps_per_tile;
  const int64_t C = conv.C_per_group(), K = conv.K_per_group(), taps = C * conv.rows.kernel * conv.cols.kernel;
  const int64_t tiles = (K - 1) / filters_per_tile + 1, chunks = plan.chunks, size = K * plan.taps * L;
  const Correlation problem = forward_correlation(conv);
  Scratch scratch;
  T* accumulators = scratch.take<T>(conv.groups * chunks * size);

  const double work = double(conv.N) * conv.rows.out * conv.cols.out / chunks * K * taps;
  parallel_for(conv.groups * chunks, work, [&](int64_t task) {
    const int64_t group = task / chunks, blocks = plan.blocks.count();
    const int64_t begin = blocks * (task % chunks) / chunks, end = blocks * (task % chunks + 1) / chunks;
    T* total = accumulators + task * size;
    std::fill_n(total, size, T(0));
    for (int64_t b = begin; b < end; ++b) {
      Scratch scratch;
      const Block block = plan.blocks[b];
      const int64_t rows = block.p_end - block.p, cols = block.q_end - block.q, images = block.n_end - block.n;
      const Patch patch(conv, block, 1);
      const PlaneLayout<S> planes(patch, C);
      int64_t* at = scratch.take<int64_t>(images * rows);
      for (int64_t i = 0; i < images * rows; ++i)
        at[i] = i / rows * planes.image + i % rows * patch.rows.step * planes.row;
      int64_t* offset = scratch.take<int64_t>(plan.taps);
      for (int64_t t = 0; t < plan.taps; ++t) offset[t] = planes.offset(conv, std::min(t, taps - 1));

      T* copy = scratch.take<T>(images * planes.image + L);
      for (int64_t n = 0; n < images; ++n)
        read_planes(problem, block.n + n, patch, planes, group * C, C, x, copy + n * planes.image);
      const int64_t y_row = (cols - 1) / L * L + L, y_pitch = images * rows * y_row + L;
      T *gradient = scratch.take<T>(K * y_pitch), *to = gradient;
      for (int64_t n = block.n; n < block.n_end; ++n)
        for (int64_t p = block.p; p < block.p_end; ++p, to += y_row)
          read_tile<S>({y + n * conv.y.n + group * K * conv.y.c + p * conv.y.h + block.q * conv.y.w, K, cols, conv.y.c,
                        conv.y.w},
                       to, y_pitch);

      WeightProduct<T> product{};
      product.x = copy, product.y_pitch = y_pitch, product.at = at;
      product.rows = images * rows, product.cols = cols, product.y_row = y_row;
      product.pitch = plan.taps * L;
      for (int64_t t = 0; t < taps; t += NT)
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t k = K * tile / tiles, MR = K * (tile + 1) / tiles - k;
          product.y = gradient + k * y_pitch, product.offset = offset + t;
          product.accumulators = total + (k * plan.taps + t) * L;
          multiply_weight_rows<T>[MR - 1](product);
        }
    }
  });

  // Adds the accumulators of all chunks, and then their lanes.
  parallel_for(conv.K, double(chunks) * taps * L, [&](int64_t k) {
    T* total = accumulators + k / K * chunks * size + k % K * plan.taps * L;
    for (int64_t t = 0; t < taps; ++t, total += L) {
      reduce_chunks(total, L, chunks, size);
      T acc = 0;
      for (int lane = 0; lane < L; ++lane) acc += total[lane];
      const int64_t s = t % conv.cols.kernel, r = t / conv.cols.kernel % conv.rows.kernel,
                    c = t / conv.cols.kernel / conv.rows.kernel;
      w[k * conv.w.n + c * conv.w.c + r * conv.w.h + s * conv.w.w] = S(acc);
    }
  });
}

}  // namespace spatial
