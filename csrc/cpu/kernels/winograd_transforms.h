// winograd: the transforms of tiles, and the conversion between tensors and stacks of 36 matrices. See winograd.h.

namespace winograd {

constexpr int planes = 36;  // elements of a transformed tile: 6x6

// The squares of p = 3/4 and q = 3/2; the points are 0, +-p, +-q and infinity.
constexpr double p2 = 0.5625, q2 = 2.25;

// B^T d. The rows of B^T are the coefficients of M(x) / (x - point), where M(x) = x (x^2 - p^2) (x^2 - q^2), and of
// M(x) for infinity.
template <class T, class V>
INLINE void transform_input(const V (&d)[6], V (&out)[6]) {
  const V p = broadcast(T(0.75)), q = broadcast(T(1.5));
  const V product = broadcast(T(p2 * q2)), acc = broadcast(T(-p2 - q2));
  const V minus_p2 = broadcast(T(-p2)), minus_q2 = broadcast(T(-q2));
  out[0] = fma(product, d[0], fma(acc, d[2], d[4]));
  const V even_p = fma(minus_q2, d[2], d[4]), odd_p = fma(minus_q2, d[1], d[3]);
  out[1] = fma(p, odd_p, even_p);
  out[2] = fma(-p, odd_p, even_p);
  const V even_q = fma(minus_p2, d[2], d[4]), odd_q = fma(minus_p2, d[1], d[3]);
  out[3] = fma(q, odd_q, even_q);
  out[4] = fma(-q, odd_q, even_q);
  out[5] = fma(product, d[1], fma(acc, d[3], d[5]));
}

// G g. The taps are a polynomial; its value at each point is divided by the product of the distances from that point to
// the others.
template <class T, class V>
INLINE void transform_weights(const V (&g)[3], V (&out)[6]) {
  constexpr double at_0 = 1 / (p2 * q2), at_p = 1 / (2 * p2 * (p2 - q2)), at_q = 1 / (2 * q2 * (q2 - p2));
  out[0] = broadcast(T(at_0)) * g[0];
  const V even_p = fma(broadcast(T(p2 * at_p)), g[2], broadcast(T(at_p)) * g[0]),
          odd_p = broadcast(T(0.75 * at_p)) * g[1];
  out[1] = even_p + odd_p;
  out[2] = even_p - odd_p;
  const V even_q = fma(broadcast(T(q2 * at_q)), g[2], broadcast(T(at_q)) * g[0]),
          odd_q = broadcast(T(1.5 * at_q)) * g[1];
  out[3] = even_q + odd_q;
  out[4] = even_q - odd_q;
  out[5] = g[2];
}

// A^T m. The columns of A^T are the powers of the points.
template <class T, class V>
INLINE void transform_output(const V (&m)[6], V (&out)[4]) {
  const V even_p = m[1] + m[2], odd_p = m[1] - m[2], even_q = m[3] + m[4], odd_q = m[3] - m[4];
  out[0] = m[0] + even_p + even_q;
  out[1] = fma(broadcast(T(0.75)), odd_p, broadcast(T(1.5)) * odd_q);
  out[2] = fma(broadcast(T(p2)), even_p, broadcast(T(q2)) * even_q);
  out[3] = fma(broadcast(T(0.75 * p2)), odd_p, fma(broadcast(T(1.5 * q2)), odd_q, m[5]));
}

// transform(transform(from)^T)^T of an in x in matrix of vectors: applies `transform` to columns, then to rows. Reads
// from(i, j) and calls to(i, j, vector).
template <class T, int in, int out, class From, class Transform, class To>
INLINE void transform_2d(const From& from, const Transform& transform, const To& to) {
  using V = typename Simd<T>::V;
  V half[out][in];
  unroll<in>([&](auto j) __attribute__((always_inline)) {
    V column[in], result[out];
    unroll<in>([&](auto i) __attribute__((always_inline)) { column[i] = from(i, j); });
    transform(column, result);
    unroll<out>([&](auto i) __attribute__((always_inline)) { half[i][j] = result[i]; });
  });
  unroll<out>([&](auto i) __attribute__((always_inline)) {
    V result[out];
    transform(half[i], result);
    unroll<out>([&](auto j) __attribute__((always_inline)) { to(i, j, result[j]); });
  });
}

// A set of tiles: `rows` x `cols` tiles, starting at tile (row, col), in each of `images` images, starting at image n.
// A tile is 4x4 outputs.
struct Tiles {
  int64_t n, images, row, rows, col, cols;

  int64_t count() const { return images * rows * cols; }
};

// Cuts all images into Tiles of at most `most` tiles.
struct Cut {
  int64_t N, tile_rows, tile_cols, images, rows, cols;

  Cut(const Conv& conv, int64_t most)
      : N(conv.N), tile_rows((conv.rows.out + 3) / 4), tile_cols((conv.cols.out + 3) / 4) {
    const auto share = [](int64_t all, int64_t most) {
      return (all - 1) / ((all - 1) / std::clamp<int64_t>(most, 1, all) + 1) + 1;
    };
    cols = share(tile_cols, most);
    rows = cols == tile_cols ? share(tile_rows, most / cols) : 1;
    images = rows == tile_rows ? share(N, most / (rows * cols)) : 1;
  }

  int64_t count() const { return parts(N, images) * parts(tile_rows, rows) * parts(tile_cols, cols); }

  Tiles operator[](int64_t i) const {
    const int64_t col = i % parts(tile_cols, cols) * cols, rest = i / parts(tile_cols, cols);
    const int64_t row = rest % parts(tile_rows, rows) * rows, n = rest / parts(tile_rows, rows) * images;
    return {n, std::min(images, N - n), row, std::min(rows, tile_rows - row), col, std::min(cols, tile_cols - col)};
  }

  static int64_t parts(int64_t all, int64_t part) { return (all - 1) / part + 1; }
};

// The layout of a stack of 36 matrices, [plane][row][pitch]. The gap between the matrices spreads them over the cache
// sets.
struct Stack {
  int64_t pitch, plane;

  Stack(int64_t rows, int64_t pitch) : pitch(pitch), plane(rows * pitch + 16) {}
  int64_t size() const { return planes * plane; }
};

// Transforms tiles of in x in elements of x to [plane][tile][channel], for channels [c, c + channels) of the whole
// tensor.
template <class S, int in, class Transform>
void transform_tiles(const Correlation& conv, const Tiles& tiles, int64_t c, int64_t channels, const S* x, Acc<S>* to,
                     const Stack& stack, const Transform& transform) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const int64_t width = (channels + L - 1) / L * L;
  for (int64_t n = tiles.n; n < tiles.n + tiles.images; ++n)
    for (int64_t row = tiles.row; row < tiles.row + tiles.rows; ++row) {
      Scratch scratch;
      // The patch covers the last tile completely, even if some of its outputs do not exist.
      const Block block{n, n + 1, row * 4, row * 4 + 4, tiles.col * 4, (tiles.col + tiles.cols) * 4};
      const Patch patch(conv, block, width);
      T* copy = scratch.take<T>(patch.image_pitch());
      read_patch(conv, block, patch, c, channels, x, copy);
      for (int64_t col = 0; col < tiles.cols; ++col, to += stack.pitch)
        for (int64_t lane = 0; lane < channels; lane += L) {
          const T* corner = copy + col * 4 * width + lane;
          transform_2d<T, in, 6>(
              [&](auto i, auto j)
                  __attribute__((always_inline)) { return load(corner + i * patch.row_pitch() + j * width); },
              transform,
              [&](auto i, auto j, Vector<S> value)
                  __attribute__((always_inline)) { store(to + lane + (i * 6 + j) * stack.plane, value); });
        }
    }
}

// Computes V of `tiles`, for input channels [c, c + channels) of the whole tensor.
template <class S>
void make_v(const Correlation& conv, const Tiles& tiles, int64_t c, int64_t channels, const S* x, Acc<S>* v,
            const Stack& stack) {
  using V = Vector<S>;
  transform_tiles<S, 6>(conv, tiles, c, channels, x, v, stack,
                        [](const V(&in)[6], V(&out)[6])
                            __attribute__((always_inline)) { transform_input<Acc<S>>(in, out); });
}

// Computes U, [plane][input channel][lane], of output channels [k, k + NR) and input channels [c, c + channels) of a
// group.
template <class S>
void make_u(const Correlation& conv, const S* w, int64_t group, int64_t k, int64_t NR, int64_t c, int64_t channels,
            Acc<S>* u, const Stack& stack) {
  using T = Acc<S>;
  using V = Vector<S>;
  Scratch scratch;
  const int64_t size = channels * NR;
  T* taps = scratch.take<T>(9 * size);
  pack_weights(conv, w, group, k, NR, c, channels, taps);
  for (int64_t i = 0; i < size; i += lanes<S>)
    transform_2d<T, 3, 6>(
        [&](auto r, auto s) __attribute__((always_inline)) { return load(taps + (r * 3 + s) * size + i); },
        [](const V(&in)[3], V(&out)[6]) __attribute__((always_inline)) { transform_weights<T>(in, out); },
        [&](auto r, auto s, V value)
            __attribute__((always_inline)) { store(u + (r * 6 + s) * stack.plane + i, value); });
}

// The output pixels of `tiles`, starting at output channel k of the whole tensor.
template <class S>
Pixels<S> outputs(const Correlation& conv, const Tiles& tiles, int64_t k, S* y) {
  const int64_t p = tiles.row * 4, q = tiles.col * 4;
  const Block block{tiles.n, tiles.n + tiles.images,
                    p,       std::min(p + tiles.rows * 4, conv.rows.out),
                    q,       std::min(q + tiles.cols * 4, conv.cols.out)};
  return {y + k * conv.y.c + tiles.n * conv.y.n + p * conv.y.h + q * conv.y.w, conv.y, block};
}

// Computes y of `tiles` from M, for output channels [k, k + count) of the whole tensor: A^T M A and the epilogue.
template <class S>
void write_outputs(const Correlation& conv, const Tiles& tiles, const Acc<S>* m, const Stack& stack, int64_t k,
                   int64_t count, S* y, const FusedEpilogue<Acc<S>>& fused) {
  using T = Acc<S>;
  using V = Vector<S>;
  constexpr int L = lanes<S>;
  const bool direct = std::is_same_v<S, T> && conv.y.c == 1, plain = !direct || fused.is_identity();
  const int64_t q0 = tiles.col * 4, width = std::min(tiles.cols * 4, conv.cols.out - q0), NR = stack.pitch;
  Scratch scratch;
  T* buffer = direct ? nullptr : scratch.take<T>(4 * width * NR);
  for (int64_t n = tiles.n; n < tiles.n + tiles.images; ++n)
    for (int64_t row = tiles.row; row < tiles.row + tiles.rows; ++row) {
      const int64_t height = std::min<int64_t>(4, conv.rows.out - row * 4);
      S* target = y + n * conv.y.n + k * conv.y.c + row * 4 * conv.y.h + q0 * conv.y.w;
      T* to = direct ? reinterpret_cast<T*>(target) : buffer;
      const int64_t to_h = direct ? conv.y.h : width * NR, to_w = direct ? conv.y.w : NR;
      for (int64_t col = 0; col < tiles.cols; ++col, m += NR)
        for (int64_t lane = 0; lane < count; lane += L) {
          const int64_t across = std::min<int64_t>(4, width - col * 4);
          T* corner = to + col * 4 * to_w + lane;
          const auto transform = [&](const auto& put) __attribute__((always_inline)) {
            transform_2d<T, 6, 4>(
                [&](auto i, auto j)
                    __attribute__((always_inline)) { return load(m + lane + (i * 6 + j) * stack.plane); },
                [](const V(&in)[6], V(&out)[4]) __attribute__((always_inline)) { transform_output<T>(in, out); }, put);
          };
          if (height == 4 && across == 4 && plain && (!direct || count - lane >= L)) {
            transform([&](auto i, auto j, V value)
                          __attribute__((always_inline)) { store(corner + i * to_h + j * to_w, value); });
          } else {
            transform([&](auto i, auto j, V value) __attribute__((always_inline)) {
              if (i >= height || j >= across) return;
              if (!plain) value = fused(value, lane);
              if (!direct || count - lane >= L) {
                store(corner + i * to_h + j * to_w, value);
              } else {
                store(corner + i * to_h + j * to_w, value, count - lane);
              }
            });
          }
        }
      if (direct) continue;
      const bool whole = width == conv.cols.out && conv.y.h == width * conv.y.w;
      if (whole) write_tile<S>(to, NR, {target, height * width, count, conv.y.w, conv.y.c}, fused);
      for (int64_t i = 0; i < height && !whole; ++i)
        write_tile<S>(to + i * to_h, NR, {target + i * conv.y.h, width, count, conv.y.w, conv.y.c}, fused);
    }
}

}  // namespace winograd
