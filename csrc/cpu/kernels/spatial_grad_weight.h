// spatial: grad_weight for few channels. A register tile is some output channels x some taps. Products of vectors of
// pixels are accumulated lane by lane, and the lanes are added at the end.

namespace spatial {

// Maximum vectors of accumulators. With more, adding their lanes takes most of the time.
constexpr double max_accumulators = 4096;

// The estimated cycles per output pixel of grad_weight, in float32; infinite above max_accumulators. A multiplication
// takes 1.7 times as long as in forward: a tile is only as long as a row of pixels.
inline double weight_cost(const Conv& conv) {
  const double accumulators = double(conv.rows.kernel) * conv.cols.kernel * conv.C_per_group() * conv.K_per_group();
  if (accumulators > max_accumulators) return std::numeric_limits<double>::infinity();
  return cost_of_products(1.7 * accumulators, false, conv) + cost_of_copy(conv.x, conv.C_per_group(), 0.1) +
         cost_of_copy(conv.y, conv.K_per_group(), 0.1);
}

// How grad_weight is cut into tasks: groups x chunks of blocks of pixels. Each chunk has separate accumulators.
template <class S>
struct WeightPlan {
  static constexpr int64_t block_pixels = 1024;          // of a block, where the patch is small enough
  static constexpr int64_t patch_bytes = 128 << 10;      // the patch of a block, in L2
  static constexpr int64_t accumulator_bytes = 8 << 20;  // the accumulators of all chunks, in scratch memory
  static constexpr int64_t tasks = 64;                   // the number of tasks to aim for
  static_assert(accumulator_bytes + max_planes_bytes < scratch_per_thread);

  int64_t taps;  // of all input channels of a group, rounded up to whole tiles
  int64_t chunks;
  bool possible;
  Blocks<S> blocks;

  std::string describe() const {
    return "blocks of " + counted(blocks.pixels(), "pixel") + " in " + counted(chunks, "chunk") + ", lanes are pixels";
  }
};

// The register tile: its accumulators, a vector of pixels for each tap, and one vector of output gradients.
constexpr int taps_per_tile = registers > 16 ? 4 : 2;
constexpr int filters_per_tile = 6;
static_assert(filters_per_tile * taps_per_tile + taps_per_tile + 1 <= registers);

// Plans grad_weight. Not `possible` if patches or accumulators exceed the working memory.
template <class S>
WeightPlan<S> weight_plan(const Conv& conv) {
  constexpr int L = lanes<S>, size = sizeof(Acc<S>);
  using Plan = WeightPlan<S>;
  const int64_t C = conv.C_per_group(), K = conv.K_per_group();
  Plan plan{.taps = round_up(C * conv.rows.kernel * conv.cols.kernel, taps_per_tile),
            .chunks = 1,
            .possible = false,
            .blocks = Blocks<S>(conv, Plan::block_pixels, std::max(C, K), Plan::patch_bytes)};
  const double accumulators = double(plan.taps) * conv.K * L * size;
  plan.chunks =
      std::clamp<int64_t>(std::min<double>(Plan::tasks / double(conv.groups), Plan::accumulator_bytes / accumulators),
                          1, plan.blocks.count());
  plan.possible = plan.blocks.patch_bytes <= 8.0 * Plan::patch_bytes &&
                  planes_bytes(conv, plan.blocks, C) <= max_planes_bytes && accumulators <= Plan::accumulator_bytes;
  return plan;
}

// The arguments of weight_tile: accumulators[m][t][lane] += the products of rows of pixels, y[m * y_pitch + i] times
// x[at[row] + offset[t] + i]. Rows of y are y_row apart, rows of accumulators `pitch`.
template <class T>
struct WeightTile {
  const T *x, *y;
  int64_t y_pitch;
  const int64_t *at, *offset;
  int64_t rows, cols, y_row;
  T* accumulators;
  int64_t pitch;
};

// Accumulates a tile of MR output channels x taps_per_tile taps.
template <class T, int MR>
void weight_tile(const WeightTile<T>& product) {
  using V = typename Simd<T>::V;
  constexpr int L = Simd<T>::lanes, NT = taps_per_tile;
  V acc[MR][NT] = {};
  const T* x[NT];
  const T* y = product.y;
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
  return std::array<void (*)(const WeightTile<T>&), sizeof...(m)>{weight_tile<T, m + 1>...};
}

// weight_tile, indexed by the number of output channels minus one.
template <class T>
constexpr auto weight_tiles = weight_table<T>(std::make_integer_sequence<int, filters_per_tile>());

// A block of pixels, whose products are accumulated for all weights of a group.
template <class S>
struct WeightBlock {
  using T = Acc<S>;
  static constexpr int L = lanes<S>;

  const Conv& conv;
  const WeightPlan<S>& plan;
  const int64_t group;
  const Block block;
  const int64_t C, K, taps;  // of the group; taps of all its input channels
  const int64_t images, rows, cols;
  const Patch patch;
  const PlaneLayout<S> planes;
  int64_t* at;             // of each row of pixels in the patch
  int64_t* offset;         // of each tap in the patch
  T* copy;                 // the patches, [image][plane]
  T* gradient;             // the output gradients, [output channel][row of pixels][column]
  int64_t y_row, y_pitch;  // from one row, and from one output channel, of `gradient` to the next

  WeightBlock(const Conv& conv, const WeightPlan<S>& plan, int64_t group, const Block& block, Scratch& scratch)
      : conv(conv),
        plan(plan),
        group(group),
        block(block),
        C(conv.C_per_group()),
        K(conv.K_per_group()),
        taps(C * conv.rows.kernel * conv.cols.kernel),
        images(block.n_end - block.n),
        rows(block.p_end - block.p),
        cols(block.q_end - block.q),
        patch(conv, block, 1),
        planes(patch, C) {
    at = scratch.take<int64_t>(images * rows);
    for (int64_t i = 0; i < images * rows; ++i)
      at[i] = i / rows * planes.image + i % rows * patch.rows.step * planes.row;
    // The taps that only fill up the last tile repeat the last tap.
    offset = scratch.take<int64_t>(plan.taps);
    for (int64_t t = 0; t < plan.taps; ++t) offset[t] = planes.offset(conv, std::min(t, taps - 1));
    copy = scratch.take<T>(images * planes.image + L);
    y_row = round_up(cols, L);
    y_pitch = images * rows * y_row + L;
    gradient = scratch.take<T>(K * y_pitch);
  }

  void read_x(const Correlation& forward, const S* x) const {
    for (int64_t n = 0; n < images; ++n)
      read_planes(forward, block.n + n, patch, planes, group * C, C, x, copy + n * planes.image);
  }

  void read_y(const S* y) const {
    T* to = gradient;
    for (int64_t n = block.n; n < block.n_end; ++n)
      for (int64_t p = block.p; p < block.p_end; ++p, to += y_row)
        read_tile<S>({.data = y + n * conv.y.n + group * K * conv.y.c + p * conv.y.h + block.q * conv.y.w,
                      .rows = K,
                      .cols = cols,
                      .row_stride = conv.y.c,
                      .col_stride = conv.y.w},
                     to, y_pitch);
  }

  // Adds the products of this block to accumulators[output channel][tap][lane].
  void multiply(T* accumulators) const {
    WeightTile<T> product{};
    product.x = copy;
    product.y_pitch = y_pitch;
    product.at = at;
    product.rows = images * rows;
    product.cols = cols;
    product.y_row = y_row;
    product.pitch = plan.taps * L;
    const int64_t tiles = ceil_div(K, filters_per_tile);
    for (int64_t t = 0; t < taps; t += taps_per_tile)
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t k = split_begin(K, tiles, tile), MR = split_begin(K, tiles, tile + 1) - k;
        product.y = gradient + k * y_pitch;
        product.offset = offset + t;
        product.accumulators = accumulators + (k * plan.taps + t) * L;
        weight_tiles<T>[MR - 1](product);
      }
  }
};

// Adds the accumulators of all chunks, `pitch` elements apart, and then their lanes, and stores the weights of output
// channel k of the whole tensor.
template <class S>
void reduce_weights(const Conv& conv, int64_t k, Acc<S>* accumulators, int64_t chunks, int64_t pitch, S* w) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const int64_t taps = conv.C_per_group() * conv.rows.kernel * conv.cols.kernel;
  for (int64_t t = 0; t < taps; ++t, accumulators += L) {
    reduce_chunks(accumulators, L, chunks, pitch);
    T acc = 0;
    for (int lane = 0; lane < L; ++lane) acc += accumulators[lane];
    const int64_t s = t % conv.cols.kernel, r = t / conv.cols.kernel % conv.rows.kernel;
    const int64_t c = t / conv.cols.kernel / conv.rows.kernel;
    w[k * conv.w.n + c * conv.w.c + r * conv.w.h + s * conv.w.w] = S(acc);
  }
}

// Computes w = grad_weight(x, y), where y is the output gradient. Tasks: groups x chunks.
template <class S>
void grad_weight(const Conv& conv, const WeightPlan<S>& plan, const S* x, const S* y, S* w) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const int64_t K = conv.K_per_group(), taps = conv.C_per_group() * conv.rows.kernel * conv.cols.kernel;
  const int64_t chunks = plan.chunks, blocks = plan.blocks.count(), size = K * plan.taps * L;
  const Correlation forward = forward_correlation(conv);
  Scratch scratch;
  T* accumulators = scratch.take<T>(conv.groups * chunks * size);  // [group][chunk][output channel][tap][lane]

  const double work = double(conv.N) * conv.rows.out * conv.cols.out / chunks * K * taps;
  parallel_for(conv.groups * chunks, work, [&](int64_t task) {
    const int64_t group = task / chunks, chunk = task % chunks;
    T* total = accumulators + task * size;
    std::fill_n(total, size, T(0));
    for (int64_t b = split_begin(blocks, chunks, chunk); b < split_begin(blocks, chunks, chunk + 1); ++b) {
      Scratch scratch;
      const WeightBlock<S> block(conv, plan, group, plan.blocks[b], scratch);
      block.read_x(forward, x);
      block.read_y(y);
      block.multiply(total);
    }
  });

  parallel_for(conv.K, double(chunks) * taps * L, [&](int64_t k) {
    reduce_weights(conv, k, accumulators + k / K * chunks * size + k % K * plan.taps * L, chunks, size, w);
  });
}

}  // namespace spatial
