// winograd: grad_weight of 3x3 kernels with stride 1, as F(3x3, 4x4). Each tile of 6x6 inputs and 4x4 output gradients
// contributes to 9 taps with 36 multiplications instead of 144.
//
//   V[plane]  = (B^T d B)    6x6 inputs, as in the forward operator    [plane][tile][c]
//   D[plane]  = (G g G^T)    4x4 output gradients                      [plane][tile][k]
//   M[plane] += D^T V        accumulated over all tiles                [plane][k][c]
//   w         = (A^T M A)    3x3 taps
//
// At most max_chunk_tiles tiles are accumulated in registers and then added to M, so that reductions stay short.

namespace winograd {

// G g of four output gradients: transform_weights with four elements instead of three.
template <class T, class V>
INLINE void transform_gradient(const V (&g)[4], V (&out)[6]) {
  out[0] = broadcast(T(at_0)) * g[0];
  const V even_p = fma(broadcast(T(p2 * at_p)), g[2], broadcast(T(at_p)) * g[0]);
  const V odd_p = fma(broadcast(T(0.75 * p2 * at_p)), g[3], broadcast(T(0.75 * at_p)) * g[1]);
  out[1] = even_p + odd_p;
  out[2] = even_p - odd_p;
  const V even_q = fma(broadcast(T(q2 * at_q)), g[2], broadcast(T(at_q)) * g[0]);
  const V odd_q = fma(broadcast(T(1.5 * q2 * at_q)), g[3], broadcast(T(1.5 * at_q)) * g[1]);
  out[3] = even_q + odd_q;
  out[4] = even_q - odd_q;
  out[5] = g[3];
}

// A^T m with three results.
template <class T, class V>
INLINE void transform_taps(const V (&m)[6], V (&out)[3]) {
  const V even_p = m[1] + m[2], odd_p = m[1] - m[2], even_q = m[3] + m[4], odd_q = m[3] - m[4];
  out[0] = m[0] + even_p + even_q;
  out[1] = fma(broadcast(T(0.75)), odd_p, broadcast(T(1.5)) * odd_q);
  out[2] = fma(broadcast(T(p2)), even_p, fma(broadcast(T(q2)), even_q, m[5]));
}

// Computes D of `tiles`, for output channels [k, k + count) of the whole tensor. See transform_tiles for `inspect`.
template <class S, class Inspect>
void make_d(const Conv& conv, const Tiles& tiles, int64_t k, int64_t count, const S* y, const PlaneStack<Acc<S>>& d,
            const Inspect& inspect) {
  using V = Vector<S>;
  const auto transform = [](const V(&in)[4], V(&out)[6])
                             __attribute__((always_inline)) { transform_gradient<Acc<S>>(in, out); };
  transform_tiles<S, 4>(gradient_correlation(conv), tiles, k, count, y, d, transform, inspect);
}

constexpr int64_t max_chunk_tiles = 196;  // tiles that are accumulated in registers

// A block of M: output channels [k, k + filters) x input channels [c, c + channels).
struct WeightBlock {
  int64_t k, filters, c, channels;
};

// V and D of some tiles, each [plane][tile][channel].
template <class S>
struct Transformed {
  using T = Acc<S>;

  PlaneStack<T> v, d;

  Transformed(int64_t max_tiles, int64_t c_pitch, int64_t k_pitch, Scratch& scratch)
      : v(max_tiles, c_pitch, scratch), d(max_tiles, k_pitch, scratch) {}

  // Changes the layout to `tiles` tiles, at most max_tiles.
  void resize(int64_t tiles) {
    v.resize(tiles);
    d.resize(tiles);
  }

  // Computes V and D of `tiles` for all channels of a group, on all threads. Tasks: rows of tiles x channel blocks,
  // first those of x, then those of y.
  void make(const Conv& conv, const Tiles& tiles, int64_t group, const S* x, const S* y, const WeightGuard<S>& guard) {
    resize(tiles.count());
    const int64_t C = conv.C_per_group(), K = conv.K_per_group();
    const int64_t v_blocks = ceil_div(C, channels_per_block), blocks = v_blocks + ceil_div(K, channels_per_block);
    const Correlation forward = forward_correlation(conv);
    const double work = double(planes) * 16 * tiles.cols * channels_per_block;
    parallel_for(tiles.images * tiles.rows * blocks, work, [&](int64_t task) {
      const int64_t row = task / blocks, block = task % blocks, first_tile = row * tiles.cols;
      const Tiles line = tiles.only_row(row);
      if (block < v_blocks) {
        const int64_t c = block * channels_per_block, channels = std::min(channels_per_block, C - c);
        make_v(forward, line, group * C + c, channels, x, v.part(first_tile, c),
               [&](const Tiles& line, const LinePatch<T>& patch) { guard.note_x(group, line, patch); });
      } else {
        const int64_t k = (block - v_blocks) * channels_per_block, filters = std::min(channels_per_block, K - k);
        make_d(conv, line, group * K + k, filters, y, d.part(first_tile, k),
               [&](const Tiles& line, const LinePatch<T>& patch) { guard.note_y(group, line, patch); });
      }
    });
  }

  // M = D^T V of a block of one plane over tiles [tile, tile + count), or M += D^T V if `add`. m[i * pitch + j] belongs
  // to output channel k + i and input channel c + j of the block.
  void multiply(int64_t plane, int64_t tile, int64_t count, const WeightBlock& block, bool add, T* m,
                int64_t pitch) const {
    constexpr int L = lanes<S>;
    const int64_t no_offset = 0;
    OuterGemmTile<T> product{};
    product.a_offset = &no_offset;
    product.b_offset = &no_offset;
    product.segments = 1;
    product.length = count;
    product.a_step = d.pitch;
    product.b_step = v.pitch;
    product.pitch = pitch;
    product.add = add;
    const T* gradients = d.row(plane, tile) + block.k;
    const T* inputs = v.row(plane, tile) + block.c;
    for (int64_t j = 0; j < block.channels;) {
      const bool wide = block.channels - j > L;
      const int64_t parts = ceil_div(block.filters, wide ? max_rows<2> : max_rows<1>);
      product.b = inputs + j;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t i = split_begin(block.filters, parts, part);
        const int64_t MR = split_begin(block.filters, parts, part + 1) - i;
        product.a = gradients + i;
        product.c = m + i * pitch + j;
        if (wide) {
          OuterGemmTiles<T, 2>::by_rows[MR - 1](product);
        } else {
          OuterGemmTiles<T, 1>::by_rows[MR - 1](product);
        }
      }
      j += wide ? 2 * L : L;
    }
  }
};

// Computes and stores the taps of output channel k of the whole tensor and input channels [c, c + channels) of its
// group from M, whose planes are `plane` elements apart.
template <class S>
void write_taps(const Conv& conv, const Acc<S>* m, int64_t plane, int64_t k, int64_t c, int64_t channels, S* w) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const int64_t pitch = round_up(channels, L);
  Scratch scratch;
  T* taps = scratch.take<T>(9 * pitch);
  for (int64_t i = 0; i < channels; i += L)
    transform_2d<T, 6, 3>(
        [&](auto r, auto s) __attribute__((always_inline)) { return load(m + (r * 6 + s) * plane + i); },
        [](const Vector<S>(&in)[6], Vector<S>(&out)[3]) __attribute__((always_inline)) { transform_taps<T>(in, out); },
        [&](auto r, auto s, Vector<S> value)
            __attribute__((always_inline)) { store(taps + (r * 3 + s) * pitch + i, value); });
  S* to = w + k * conv.w.n + c * conv.w.c;
  const bool contiguous = conv.w.h == 3 * conv.w.w;
  if (contiguous)
    return write_tile<S>(taps, pitch,
                         {.data = to, .rows = 9, .cols = channels, .row_stride = conv.w.w, .col_stride = conv.w.c});
  for (int64_t r = 0; r < 3; ++r)
    for (int64_t s = 0; s < 3; ++s)
      write_tile<S>(taps + (r * 3 + s) * pitch, 0,
                    {.data = to + r * conv.w.h + s * conv.w.w,
                     .rows = 1,
                     .cols = channels,
                     .row_stride = 0,
                     .col_stride = conv.w.c});
}

constexpr int64_t all_transformed_bytes = 24 << 20;     // V and D of all tiles
constexpr int64_t filters_per_block = 2 * max_rows<2>;  // output channels of a block of M by channels_per_block, in L2
static_assert(all_transformed_bytes < scratch_per_thread);

// Whether there are few tiles and many channels, as grad_weight_by_blocks requires.
template <class S>
bool few_tiles(const Conv& conv) {
  const double tiles = double(conv.N) * ceil_div(conv.rows.out, tile_size) * ceil_div(conv.cols.out, tile_size);
  const double channels = conv.C_per_group() + conv.K_per_group() + 2 * lanes<S>;
  return tiles * channels * planes * sizeof(Acc<S>) <= all_transformed_bytes &&
         conv.C_per_group() >= 2 * channels_per_block && conv.K_per_group() >= 2 * channels_per_block;
}

// For few tiles and many channels: computes V and D of all tiles once. Each task then computes a block of M over all
// tiles, and transforms it to taps while it is in L2.
template <class S>
void grad_weight_by_blocks(const Conv& conv, int64_t group, const S* x, const S* y, S* w, const WeightGuard<S>& guard) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const int64_t C = conv.C_per_group(), K = conv.K_per_group();
  const Tiles tiles = TileBlocks(conv, std::numeric_limits<int64_t>::max())[0];  // all of them
  Scratch scratch;
  Transformed<S> transformed(tiles.count(), round_up(C, L), round_up(K, L), scratch);
  transformed.make(conv, tiles, group, x, y, guard);
  if (guard.out_of_range()) return;
  // Smaller blocks for many threads. No reduction depends on that.
  int64_t block_c = channels_per_block, block_k = filters_per_block;
  const auto tasks = [&] { return ceil_div(C, block_c) * ceil_div(K, block_k); };
  if (tasks() < thread_count()) block_c /= 2;
  if (tasks() < thread_count()) block_k /= 2;
  const int64_t c_blocks = ceil_div(C, block_c), chunks = ceil_div(tiles.count(), max_chunk_tiles);
  parallel_for(tasks(), double(planes) * tiles.count() * block_k * block_c, [&](int64_t task) {
    const int64_t c = task % c_blocks * block_c, k = task / c_blocks * block_k;
    const WeightBlock block{.k = k, .filters = std::min(block_k, K - k), .c = c, .channels = std::min(block_c, C - c)};
    Scratch scratch;
    const PlaneStack<T> m(block.filters, block_c, scratch);
    for (int64_t plane = 0; plane < planes; ++plane)
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t tile = split_begin(tiles.count(), chunks, chunk);
        const int64_t count = split_begin(tiles.count(), chunks, chunk + 1) - tile;
        transformed.multiply(plane, tile, count, block, chunk > 0, m.row(plane, 0), m.pitch);
      }
    for (int64_t f = 0; f < block.filters; ++f)
      write_taps(conv, m.row(0, f), m.plane, group * K + k + f, c, block.channels, w);
  });
}

// For many tiles: tasks are blocks of M x groups of tiles. A task transforms the tiles of its group, a chunk at a time,
// and accumulates their products into a separate M, so that no thread touches data that another one is writing. At the
// end the M of all groups of tiles are added in order.
struct TileGroups {
  static constexpr int64_t transformed_bytes = 896 << 10;  // V and D of a chunk of tiles, in L2
  static constexpr int64_t m_bytes = 20 << 20;             // M of all groups, in scratch memory
  static constexpr int64_t max_channels = 128, max_filters = 64;
  static constexpr int64_t min_tiles = 196;  // of a group: adding the M of groups is not free
  static_assert(transformed_bytes + m_bytes < scratch_per_thread);

  int64_t channels, filters;  // input and output channels of a block of M
  int64_t count;              // groups
  int64_t chunk;              // maximum tiles of a chunk: those that are transformed at once

  // For elements of `size` bytes.
  TileGroups(const Conv& conv, int64_t size) {
    const auto share = [](int64_t all, int64_t most) { return round_up(ceil_div(all, ceil_div(all, most)), 16); };
    const int64_t C = conv.C_per_group(), K = conv.K_per_group();
    channels = share(C, max_channels);
    filters = share(K, max_filters);
    chunk = std::clamp<int64_t>(transformed_bytes / (planes * size * (channels + filters)), 1, max_chunk_tiles);
    const double m = double(planes) * size * conv.K * (C + 16);
    const double tiles = double(conv.N) * conv.rows.out * conv.cols.out / 16;
    count = std::max(1.0, std::min({m_bytes / m, tiles / min_tiles, double(TileBlocks(conv, chunk).count())}));
    // Smaller blocks for many threads. No reduction depends on that.
    while (filters > 16 && count * conv.groups * ceil_div(C, channels) * ceil_div(K, filters) < thread_count())
      filters = share(K, filters / 2);
  }
};

// grad_weight by groups of tiles, as shared by its tasks.
template <class S>
struct TileGroupTasks {
  using T = Acc<S>;
  static constexpr int L = lanes<S>;

  const Conv& conv;
  const Correlation forward;
  const TileGroups groups;
  const TileBlocks chunks;
  const int64_t C, K;                // of a group of channels
  const int64_t c_blocks, k_blocks;  // blocks of M in a group of channels
  const int64_t blocks;              // blocks of M
  const int64_t pitch, filter_pitch;
  T* const all_m;  // [group of tiles][filter, `filter_pitch` apart][plane, `pitch` apart][channel]; null for one group

  TileGroupTasks(const Conv& conv, Scratch& scratch)
      : conv(conv),
        forward(forward_correlation(conv)),
        groups(conv, sizeof(T)),
        chunks(conv, groups.chunk),
        C(conv.C_per_group()),
        K(conv.K_per_group()),
        c_blocks(ceil_div(C, groups.channels)),
        k_blocks(ceil_div(K, groups.filters)),
        blocks(conv.groups * k_blocks * c_blocks),
        pitch(round_up(C, L)),
        filter_pitch(planes * pitch),
        all_m(groups.count > 1 ? scratch.take<T>(groups.count * conv.K * filter_pitch) : nullptr) {}

  // Multiplications of a task.
  double work() const {
    return double(planes) * chunks.count() / groups.count * groups.chunk * groups.filters * groups.channels;
  }

  // Computes a block of M over a group of tiles. Transforms it to taps if there is no other group.
  void run(int64_t task, const S* x, const S* y, S* w, const WeightGuard<S>& guard) const {
    if (guard.out_of_range()) return;
    const int64_t g = task / blocks, group = task % blocks / (c_blocks * k_blocks);
    const int64_t c = task % c_blocks * groups.channels, channels = std::min(groups.channels, C - c);
    const int64_t k = task / c_blocks % k_blocks * groups.filters, filters = std::min(groups.filters, K - k);
    Scratch scratch;
    const int64_t m_plane = all_m ? pitch : round_up(channels, L), m_pitch = all_m ? filter_pitch : planes * m_plane;
    T* m = all_m ? all_m + (g * conv.K + group * K + k) * filter_pitch + c : scratch.take<T>(filters * m_pitch);
    Transformed<S> transformed(groups.chunk, round_up(channels, L), round_up(filters, L), scratch);
    const WeightBlock block{.k = 0, .filters = filters, .c = 0, .channels = channels};
    const int64_t begin = split_begin(chunks.count(), groups.count, g);
    const int64_t end = split_begin(chunks.count(), groups.count, g + 1);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const Tiles tiles = chunks[chunk];
      transformed.resize(tiles.count());
      // Other tasks transform the same inputs for other filters, and the same gradients for other channels.
      make_v(forward, tiles, group * C + c, channels, x, transformed.v,
             [&](const Tiles& line, const LinePatch<T>& patch) {
               if (k == 0) guard.note_x(group, line, patch);
             });
      make_d(conv, tiles, group * K + k, filters, y, transformed.d, [&](const Tiles& line, const LinePatch<T>& patch) {
        if (c == 0) guard.note_y(group, line, patch);
      });
      for (int64_t plane = 0; plane < planes; ++plane)
        transformed.multiply(plane, 0, tiles.count(), block, chunk > begin, m + plane * m_plane, m_pitch);
    }
    for (int64_t f = 0; !all_m && f < filters; ++f)
      write_taps(conv, m + f * m_pitch, m_plane, group * K + k + f, c, channels, w);
  }

  // Adds the M of all groups of tiles, and transforms it to the taps of output channel k of the whole tensor.
  void reduce(int64_t k, S* w) const {
    T* m = all_m + k * filter_pitch;
    reduce_chunks(m, filter_pitch, groups.count, conv.K * filter_pitch);
    write_taps(conv, m, pitch, k, 0, C, w);
  }
};

// Computes grad_weight by groups of tiles, see TileGroups.
template <class S>
void grad_weight_by_groups(const Conv& conv, const S* x, const S* y, S* w, const WeightGuard<S>& guard) {
  Scratch scratch;
  const TileGroupTasks<S> tasks(conv, scratch);
  parallel_for(tasks.groups.count * tasks.blocks, tasks.work(), [&](int64_t task) { tasks.run(task, x, y, w, guard); });
  if (!tasks.all_m || guard.out_of_range()) return;
  parallel_for(conv.K, double(tasks.groups.count) * tasks.filter_pitch, [&](int64_t k) { tasks.reduce(k, w); });
}

template <class S>
std::string describe_grad_weight(const Conv& conv) {
  return std::string("F(3x3, 4x4), tasks are ") +
         (few_tiles<S>(conv) ? "blocks of weights" : "blocks of weights and groups of tiles");
}

// Computes w = grad_weight(x, y), where y is the output gradient.
template <class S>
void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
  Scratch scratch;
  const WeightGuard<S> guard(conv, scratch);
  if (few_tiles<S>(conv)) {
    for (int64_t group = 0; group < conv.groups; ++group) grad_weight_by_blocks(conv, group, x, y, w, guard);
  } else {
    grad_weight_by_groups(conv, x, y, w, guard);
  }
  if (!guard.is_within_bound(x, y)) gemm::grad_weight<Acc<S>>(conv, gemm::weight_plan<Acc<S>, S>(conv), x, y, w);
}

}  // namespace winograd
