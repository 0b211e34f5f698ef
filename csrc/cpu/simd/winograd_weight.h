// winograd, the third operator: grad_weight of 3x3, stride 1, as F(3x3, 4x4): each tile of 6x6 inputs and 4x4 output
// gradients gives 9 sums by 36 multiplications instead of 144.
//
//   V[plane]  = (B^T d B)    6x6 inputs, as in the forward operator    [plane][tile][c]
//   D[plane]  = (G g G^T)    4x4 output gradients                      [plane][tile][k]
//   M[plane] += D^T V        summed up over all tiles                  [plane][k][c]
//   w         = (A^T M A)    3x3 taps
//
// Tiles are taken in chunks: sums of one chunk are kept in registers and added to M, so that they stay short.

namespace winograd {

// G g for four taps.
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

// A^T m for three results.
template <class T, class V>
INLINE void transform_taps(const V (&m)[6], V (&out)[3]) {
  const V even_p = m[1] + m[2], odd_p = m[1] - m[2], even_q = m[3] + m[4], odd_q = m[3] - m[4];
  out[0] = m[0] + even_p + even_q;
  out[1] = fma(broadcast(T(0.75)), odd_p, broadcast(T(1.5)) * odd_q);
  out[2] = fma(broadcast(T(p2)), even_p, fma(broadcast(T(q2)), even_q, m[5]));
}

// D of output channels [k, k + count) of the whole tensor.
template <class S>
void make_d(const Conv& conv, const Tiles& tiles, int64_t k, int64_t count, const S* y, Sum<S>* d, const Stack& stack) {
  using V = Vector<S>;
  Correlation gradient;  // reads y, whose outputs beyond the last count as zeros
  gradient.x = conv.y;
  gradient.rows = {conv.rows.out, 1, tiles.rows * 4, 1, 1, 0};
  gradient.cols = {conv.cols.out, 1, tiles.cols * 4, 1, 1, 0};
  transform_tiles<S, 4>(gradient, tiles, k, count, y, d, stack,
                        [](const V(&in)[4], V(&out)[6])
                            __attribute__((always_inline)) { transform_gradient<Sum<S>>(in, out); });
}

constexpr int64_t shared_d = 4 << 20;           // V, and D, of a chunk, in bytes
constexpr int64_t all_m = 14 << 20;             // M of the output channels that are done at a time
constexpr int64_t chunk_tiles = 196;            // whose sums are kept in registers
constexpr int64_t together = 5 * most_rows<2>;  // output channels of a unit

template <class S>
void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
  using T = Sum<S>;
  constexpr int L = lanes<S>;
  const int64_t C = conv.C_per_group(), K = conv.K_per_group(), c_pitch = (C + L - 1) / L * L;
  const Correlation problem = forward_correlation(conv);
  // M of `slice` output channels, a multiple of those of a unit if possible.
  const int64_t most = all_m / int64_t(sizeof(T)) / planes / c_pitch;
  const int64_t slice = K <= most ? K : most >= together ? most / together * together : std::max<int64_t>(1, most);
  for (int64_t group = 0; group < conv.groups; ++group)
    for (int64_t k = 0; k < K; k += slice) {
      const int64_t filters = std::min(slice, K - k), d_pitch = (filters + L - 1) / L * L;
      Scratch scratch;
      const Cut cut(conv, std::clamp<int64_t>(shared_d / int64_t(sizeof(T)) / planes / std::max(c_pitch, d_pitch), 1,
                                              chunk_tiles));
      const int64_t tiles_at_once = cut.images * cut.rows * cut.cols;
      T* m = scratch.take<T>(planes * filters * c_pitch);
      T* v = scratch.take<T>(Stack(tiles_at_once, c_pitch).size());
      T* d = scratch.take<T>(Stack(tiles_at_once, d_pitch).size());
      for (int64_t chunk = 0; chunk < cut.count(); ++chunk) {
        const Tiles tiles = cut[chunk];
        const Stack v_stack(tiles.count(), c_pitch), d_stack(tiles.count(), d_pitch);
        // Tile rows x slabs of channels, of x first and then of y.
        const int64_t rows = tiles.images * tiles.rows, v_slabs = (C - 1) / slab_channels + 1,
                      d_slabs = (filters - 1) / slab_channels + 1;
        parallel_for(rows * (v_slabs + d_slabs), double(planes) * 16 * tiles.cols * slab_channels, [&](int64_t unit) {
          const FlushSubnormals flush;
          const int64_t row = unit / (v_slabs + d_slabs), slab = unit % (v_slabs + d_slabs);
          const Tiles one{tiles.n + row / tiles.rows, 1, tiles.row + row % tiles.rows, 1, tiles.col, tiles.cols};
          if (slab < v_slabs) {
            const int64_t c = slab * slab_channels;
            make_v(problem, one, group * C + c, std::min(slab_channels, C - c), x, v + row * tiles.cols * c_pitch + c,
                   v_stack);
          } else {
            const int64_t f = (slab - v_slabs) * slab_channels;
            make_d(conv, one, group * K + k + f, std::min(slab_channels, filters - f), y,
                   d + row * tiles.cols * d_pitch + f, d_stack);
          }
        });
        const int64_t units = (filters - 1) / together + 1, no_offset = 0;
        parallel_for(planes * units, double(tiles.count()) * together * C, [&](int64_t unit) {
          const FlushSubnormals flush;
          const int64_t plane = unit / units, begin = filters * (unit % units) / units,
                        end = filters * (unit % units + 1) / units;
          OuterProduct<T> product{};
          product.a_offset = product.b_offset = &no_offset, product.segments = 1, product.length = tiles.count();
          product.a_step = d_pitch, product.b_step = c_pitch;
          product.pitch = c_pitch, product.add = chunk > 0;
          for (int64_t c = 0; c < C;) {
            const bool wide = C - c > L;
            const int64_t parts = (end - begin - 1) / (wide ? most_rows<2> : most_rows<1>)+1;
            product.b = v + plane * v_stack.plane + c;
            for (int64_t part = 0; part < parts; ++part) {
              const int64_t f = begin + (end - begin) * part / parts,
                            MR = begin + (end - begin) * (part + 1) / parts - f;
              product.a = d + plane * d_stack.plane + f;
              product.c = m + (plane * filters + f) * c_pitch + c;
              if (wide) {
                multiply_outer_rows<T, 2>[MR - 1](product);
              } else {
                multiply_outer_rows<T, 1>[MR - 1](product);
              }
            }
            c += wide ? 2 * L : L;
          }
        });
      }
      parallel_for(filters, double(planes) * C * 4, [&](int64_t f) {
        const FlushSubnormals flush;
        Scratch scratch;
        T* taps = scratch.take<T>(9 * c_pitch);
        for (int64_t c = 0; c < C; c += L)
          transform_2d<T, 6, 3>(
              [&](auto i, auto j)
                  __attribute__((always_inline)) { return load(m + ((i * 6 + j) * filters + f) * c_pitch + c); },
              [](const Vector<S>(&in)[6], Vector<S>(&out)[3])
                  __attribute__((always_inline)) { transform_taps<T>(in, out); },
              [&](auto r, auto s, Vector<S> value)
                  __attribute__((always_inline)) { store(taps + (r * 3 + s) * c_pitch + c, value); });
        S* to = w + (group * K + k + f) * conv.w.n;
        if (conv.w.h == 3 * conv.w.w) return write_tile(taps, c_pitch, 9, C, to, conv.w.w, conv.w.c, Finish<T>(), 0);
        for (int64_t r = 0; r < 3; ++r)
          for (int64_t s = 0; s < 3; ++s)
            write_tile(taps + (r * 3 + s) * c_pitch, 0, 1, C, to + r * conv.w.h + s * conv.w.w, 0, conv.w.c,
                       Finish<T>(), 0);
      });
    }
}

}  // namespace winograd
