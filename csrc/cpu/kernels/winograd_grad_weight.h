// winograd: grad_weight of 3x3 kernels with stride 1, as F(3x3, 4x4). Each tile of 6x6 inputs and 4x4 output gradients
// contributes to 9 taps with 36 multiplications instead of 144.
//
//   V[plane]  = (B^T d B)    6x6 inputs, as in the forward operator    [plane][tile][c]
//   D[plane]  = (G g G^T)    4x4 output gradients                      [plane][tile][k]
//   M[plane] += D^T V        accumulated over all tiles                [plane][k][c]
//   w         = (A^T M A)    3x3 taps
//
// At most chunk_tiles tiles are accumulated in registers and then added to M, so that reductions stay short.

namespace winograd {

// G g of four output gradients: transform_weights with four elements instead of three.
template <class T, class V>
INLINE void transform_gradient(const V (&g)[4], V (&out)[6]) {
  constexpr double at_0 = 1 / (p2 * q2), at_p = 1 / (2 * p2 * (p2 - q2)), at_q = 1 / (2 * q2 * (q2 - p2));
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

// Computes D of `tiles`, for output channels [k, k + count) of the whole tensor.
template <class S>
void make_d(const Conv& conv, const Tiles& tiles, int64_t k, int64_t count, const S* y, Acc<S>* d, const Stack& stack) {
  using V = Vector<S>;
  Correlation gradient;  // a correlation that reads y, with zeros beyond its last row and column
  gradient.x = conv.y;
  gradient.rows = {conv.rows.out, 1, tiles.rows * 4, 1, 1, 0};
  gradient.cols = {conv.cols.out, 1, tiles.cols * 4, 1, 1, 0};
  transform_tiles<S, 4>(gradient, tiles, k, count, y, d, stack,
                        [](const V(&in)[4], V(&out)[6])
                            __attribute__((always_inline)) { transform_gradient<Acc<S>>(in, out); });
}

constexpr int64_t chunk_tiles = 196;  // tiles that are accumulated in registers

// V and D of some tiles, each [plane][tile][channel].
template <class S>
struct Transformed {
  using T = Acc<S>;

  Stack v_stack, d_stack;
  T *v, *d;

  Transformed(int64_t max_tiles, int64_t c_pitch, int64_t d_pitch, Scratch& scratch)
      : v_stack(max_tiles, c_pitch), d_stack(max_tiles, d_pitch) {
    v = scratch.take<T>(v_stack.size()), d = scratch.take<T>(d_stack.size());
  }

  // Changes the layout to `tiles` tiles, at most max_tiles.
  void resize(int64_t tiles) { v_stack = Stack(tiles, v_stack.pitch), d_stack = Stack(tiles, d_stack.pitch); }

  // Computes V of input channels [c, c + channels) and D of output channels [k, k + filters) of the whole tensors, on
  // all threads.
  void make(const Correlation& conv, const Tiles& tiles, int64_t c, int64_t channels, int64_t k, int64_t filters,
            const S* x, const S* y) {
    resize(tiles.count());
    // Tasks: rows of tiles x slabs of channels, first those of x, then those of y.
    const int64_t rows = tiles.images * tiles.rows, v_slabs = (channels - 1) / slab_channels + 1,
                  slabs = v_slabs + (filters - 1) / slab_channels + 1;
    parallel_for(rows * slabs, double(planes) * 16 * tiles.cols * slab_channels, [&](int64_t task) {
      const int64_t row = task / slabs, slab = task % slabs;
      const Tiles one{tiles.n + row / tiles.rows, 1, tiles.row + row % tiles.rows, 1, tiles.col, tiles.cols};
      if (slab < v_slabs) {
        const int64_t i = slab * slab_channels;
        make_v(conv, one, c + i, std::min(slab_channels, channels - i), x, v + row * tiles.cols * v_stack.pitch + i,
               v_stack);
      } else {
        const int64_t i = (slab - v_slabs) * slab_channels;
        make_d(conv, one, k + i, std::min(slab_channels, filters - i), y, d + row * tiles.cols * d_stack.pitch + i,
               d_stack);
      }
    });
  }

  // M = D^T V of one plane, or M += D^T V if `add`: over tiles [tile, tile + count), for output channels [f, f_end) and
  // input channels [c, c_end). m[i * pitch + c] belongs to output channel f + i and input channel c.
  void multiply(int64_t plane, int64_t tile, int64_t count, int64_t f, int64_t f_end, int64_t c, int64_t c_end,
                bool add, T* m, int64_t pitch) const {
    constexpr int L = lanes<S>;
    const int64_t no_offset = 0, filters = f_end - f;
    OuterGemmTile<T> product{};
    product.a_offset = product.b_offset = &no_offset, product.segments = 1, product.length = count;
    product.a_step = d_stack.pitch, product.b_step = v_stack.pitch, product.pitch = pitch, product.add = add;
    const T* gradients = d + plane * d_stack.plane + tile * d_stack.pitch + f;
    const T* inputs = v + plane * v_stack.plane + tile * v_stack.pitch;
    for (; c < c_end;) {
      const bool wide = c_end - c > L;
      const int64_t parts = (filters - 1) / (wide ? max_rows<2> : max_rows<1>)+1;
      product.b = inputs + c;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t i = filters * part / parts, MR = filters * (part + 1) / parts - i;
        product.a = gradients + i, product.c = m + i * pitch + c;
        if (wide) {
          OuterGemmTiles<T, 2>::by_rows[MR - 1](product);
        } else {
          OuterGemmTiles<T, 1>::by_rows[MR - 1](product);
        }
      }
      c += wide ? 2 * L : L;
    }
  }
};

// Computes and stores the taps of output channel k of the whole tensor and input channels [c, c + channels) of its
// group from M, whose planes are `plane` elements apart.
template <class S>
void write_taps(const Conv& conv, const Acc<S>* m, int64_t plane, int64_t k, int64_t c, int64_t channels, S* w) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const int64_t pitch = (channels + L - 1) / L * L;
  Scratch scratch;
  T* taps = scratch.take<T>(9 * pitch);
  for (int64_t i = 0; i < channels; i += L)
    transform_2d<T, 6, 3>(
        [&](auto r, auto s) __attribute__((always_inline)) { return load(m + (r * 6 + s) * plane + i); },
        [](const Vector<S>(&in)[6], Vector<S>(&out)[3]) __attribute__((always_inline)) { transform_taps<T>(in, out); },
        [&](auto r, auto s, Vector<S> value)
            __attribute__((always_inline)) { store(taps + (r * 3 + s) * pitch + i, value); });
  S* to = w + k * conv.w.n + c * conv.w.c;
  if (conv.w.h == 3 * conv.w.w) return write_tile<S>(taps, pitch, {to, 9, channels, conv.w.w, conv.w.c});
  for (int64_t r = 0; r < 3; ++r)
    for (int64_t s = 0; s < 3; ++s)
      write_tile<S>(taps + (r * 3 + s) * pitch, 0, {to + r * conv.w.h + s * conv.w.w, 1, channels, 0, conv.w.c});
}

constexpr int64_t all_transformed = 24 << 20;       // bytes: V and D of all tiles
constexpr int64_t block_filters = 2 * max_rows<2>;  // output channels of a block of M, by slab_channels, in L2

// Whether there are few tiles and many channels, as grad_weight_by_blocks requires.
template <class S>
bool few_tiles(const Conv& conv) {
  const double tiles = double(conv.N) * ((conv.rows.out + 3) / 4) * ((conv.cols.out + 3) / 4);
  const double channels = conv.C_per_group() + conv.K_per_group() + 2 * lanes<S>;
  return tiles * channels * planes * sizeof(Acc<S>) <= all_transformed && conv.C_per_group() >= 2 * slab_channels &&
         conv.K_per_group() >= 2 * slab_channels;
}

// For few tiles and many channels: computes V and D of all tiles once. Each task then computes a block of M over all
// tiles, and transforms it to taps while it is in L2.
template <class S>
void grad_weight_by_blocks(const Conv& conv, int64_t group, const S* x, const S* y, S* w) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const int64_t C = conv.C_per_group(), K = conv.K_per_group();
  const Cut cut(conv, std::numeric_limits<int64_t>::max());  // one part
  const Tiles tiles = cut[0];
  Scratch scratch;
  Transformed<S> transformed(tiles.count(), (C + L - 1) / L * L, (K + L - 1) / L * L, scratch);
  transformed.make(forward_correlation(conv), tiles, group * C, C, group * K, K, x, y);
  int64_t block_c = slab_channels, block_k = block_filters;
  const auto tasks = [&] { return ((C - 1) / block_c + 1) * ((K - 1) / block_k + 1); };
  if (tasks() < thread_count()) block_c /= 2;
  if (tasks() < thread_count()) block_k /= 2;
  const int64_t c_blocks = (C - 1) / block_c + 1, k_blocks = (K - 1) / block_k + 1;
  const int64_t chunks = (tiles.count() - 1) / chunk_tiles + 1;
  parallel_for(c_blocks * k_blocks, double(planes) * tiles.count() * block_k * block_c, [&](int64_t task) {
    const int64_t c = task % c_blocks * block_c, channels = std::min(block_c, C - c), k = task / c_blocks * block_k,
                  filters = std::min(block_k, K - k);
    Scratch scratch;
    const Stack stack(filters, block_c);
    T* m = scratch.take<T>(stack.size());
    for (int64_t plane = 0; plane < planes; ++plane)
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t tile = tiles.count() * chunk / chunks, count = tiles.count() * (chunk + 1) / chunks - tile;
        transformed.multiply(plane, tile, count, k, k + filters, c, c + channels, chunk > 0,
                             m + plane * stack.plane - c, stack.pitch);
      }
    for (int64_t f = 0; f < filters; ++f)
      write_taps(conv, m + f * stack.pitch, stack.plane, group * K + k + f, c, channels, w);
  });
}

// For many tiles: tasks are blocks of M x groups of tiles. A task transforms the tiles of its group, a few at once, and
// accumulates their products into a separate M, so that no thread touches data that another one is writing. At the end
// the M of all groups are added in order.
struct Groups {
  static constexpr int64_t transformed_bytes = 896 << 10;  // V and D of the tiles that are transformed at once, in L2
  static constexpr int64_t all_m = 20 << 20;               // bytes: M of all groups
  static constexpr int64_t max_channels = 128, max_filters = 64;
  static constexpr int64_t least_tiles = 196;  // minimum per group: adding the M of groups is not free

  int64_t channels, filters;  // input and output channels of a block of M
  int64_t count;              // groups
  int64_t tiles;              // tiles that are transformed at once

  Groups(const Conv& conv, int64_t size) {
    const auto share = [](int64_t all, int64_t most) {
      const int64_t parts = (all - 1) / most + 1;
      return ((all - 1) / parts / 16 + 1) * 16;
    };
    const int64_t C = conv.C_per_group(), K = conv.K_per_group();
    channels = share(C, max_channels), filters = share(K, max_filters);
    tiles = std::clamp<int64_t>(transformed_bytes / (planes * size * (channels + filters)), 1, chunk_tiles);
    const double m = double(planes) * size * conv.K * (C + 16),
                 all = double(conv.N) * conv.rows.out * conv.cols.out / 16;
    count = std::max(1.0, std::min({all_m / m, all / least_tiles, double(Cut(conv, tiles).count())}));
    // Smaller blocks for many threads. No reduction depends on that.
    while (filters > 16 && count * conv.groups * ((C - 1) / channels + 1) * ((K - 1) / filters + 1) < thread_count())
      filters = share(K, filters / 2);
  }
};

// Computes grad_weight by groups of tiles, see Groups.
template <class S>
void grad_weight_by_groups(const Conv& conv, const S* x, const S* y, S* w) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const auto padded = [](int64_t lanes) { return (lanes - 1) / L * L + L; };
  const int64_t C = conv.C_per_group(), K = conv.K_per_group(), pitch = padded(C);
  const Correlation problem = forward_correlation(conv);
  const Groups groups(conv, sizeof(T));
  const Cut cut(conv, groups.tiles);
  const int64_t c_blocks = (C - 1) / groups.channels + 1, k_blocks = (K - 1) / groups.filters + 1;
  const int64_t filter_pitch = planes * pitch;  // m[group][filter][plane][channel]
  Scratch scratch;
  T* all_m = groups.count > 1 ? scratch.take<T>(groups.count * conv.K * filter_pitch) : nullptr;
  const int64_t blocks = conv.groups * k_blocks * c_blocks;
  const double work = double(planes) * cut.count() / groups.count * groups.tiles * groups.filters * groups.channels;
  parallel_for(groups.count * blocks, work, [&](int64_t task) {
    const int64_t g = task / blocks, group = task % blocks / (c_blocks * k_blocks);
    const int64_t c = task % c_blocks * groups.channels, channels = std::min(groups.channels, C - c),
                  k = task / c_blocks % k_blocks * groups.filters, filters = std::min(groups.filters, K - k);
    Scratch scratch;
    const int64_t m_pitch = all_m ? filter_pitch : planes * padded(channels),
                  m_plane = all_m ? pitch : padded(channels);
    T* m = all_m ? all_m + (g * conv.K + group * K + k) * filter_pitch + c : scratch.take<T>(filters * m_pitch);
    Transformed<S> transformed(groups.tiles, padded(channels), padded(filters), scratch);
    const int64_t begin = cut.count() * g / groups.count, end = cut.count() * (g + 1) / groups.count;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const Tiles tiles = cut[chunk];
      transformed.resize(tiles.count());
      make_v(problem, tiles, group * C + c, channels, x, transformed.v, transformed.v_stack);
      make_d(conv, tiles, group * K + k, filters, y, transformed.d, transformed.d_stack);
      for (int64_t plane = 0; plane < planes; ++plane)
        transformed.multiply(plane, 0, tiles.count(), 0, filters, 0, channels, chunk > begin, m + plane * m_plane,
                             m_pitch);
    }
    if (all_m) return;
    for (int64_t f = 0; f < filters; ++f) write_taps(conv, m + f * m_pitch, m_plane, group * K + k + f, c, channels, w);
  });
  if (!all_m) return;
  parallel_for(conv.K, double(groups.count) * filter_pitch, [&](int64_t k) {
    T* m = all_m + k * filter_pitch;
    reduce_chunks(m, filter_pitch, groups.count, conv.K * filter_pitch);
    write_taps(conv, m, pitch, k, 0, C, w);
  });
}

template <class S>
std::string describe_grad_weight(const Conv& conv) {
  return std::string("F(3x3, 4x4), tasks are ") +
         (few_tiles<S>(conv) ? "blocks of weights" : "blocks of weights and groups of tiles");
}

// Computes w = grad_weight(x, y), where y is the output gradient.
template <class S>
void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
  if (!few_tiles<S>(conv)) return grad_weight_by_groups(conv, x, y, w);
  for (int64_t group = 0; group < conv.groups; ++group) grad_weight_by_blocks(conv, group, x, y, w);
}

}  // namespace winograd
