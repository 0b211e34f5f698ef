// winograd: the transforms of tiles, and the conversion between tensors and stacks of 36 matrices. See winograd.h.

namespace winograd {

constexpr int64_t planes = 36;    // elements of a transformed tile: 6x6
constexpr int64_t tile_size = 4;  // a tile is 4x4 outputs

// The squares of p = 3/4 and q = 3/2; the points are 0, +-p, +-q and infinity.
constexpr double p2 = 0.5625, q2 = 2.25;

// The inverse products of the distances from 0, from +-p and from +-q to the other finite points.
constexpr double at_0 = 1 / (p2 * q2), at_p = 1 / (2 * p2 * (p2 - q2)), at_q = 1 / (2 * q2 * (q2 - p2));

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
  out[0] = broadcast(T(at_0)) * g[0];
  const V even_p = fma(broadcast(T(p2 * at_p)), g[2], broadcast(T(at_p)) * g[0]);
  const V odd_p = broadcast(T(0.75 * at_p)) * g[1];
  out[1] = even_p + odd_p;
  out[2] = even_p - odd_p;
  const V even_q = fma(broadcast(T(q2 * at_q)), g[2], broadcast(T(at_q)) * g[0]);
  const V odd_q = broadcast(T(1.5 * at_q)) * g[1];
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

// A block of tiles: `rows` x `cols` tiles, starting at tile (row, col), in each of `images` images, starting at image
// n.
struct Tiles {
  int64_t n, images, row, rows, col, cols;

  int64_t count() const { return images * rows * cols; }

  // Row i of the rows of all images.
  Tiles only_row(int64_t i) const {
    return {.n = n + i / rows, .images = 1, .row = row + i % rows, .rows = 1, .col = col, .cols = cols};
  }
};

// Cuts all images into blocks of at most `most` tiles: several whole images, some rows of one image, or a part of one
// row.
struct TileBlocks {
  int64_t N, tile_rows, tile_cols, images, rows, cols;

  TileBlocks(const Conv& conv, int64_t most)
      : N(conv.N), tile_rows(ceil_div(conv.rows.out, tile_size)), tile_cols(ceil_div(conv.cols.out, tile_size)) {
    // The largest of the fewest parts of at most `most`, of almost equal size.
    const auto share = [](int64_t all, int64_t most) {
      return ceil_div(all, ceil_div(all, std::clamp<int64_t>(most, 1, all)));
    };
    cols = share(tile_cols, most);
    rows = cols == tile_cols ? share(tile_rows, most / cols) : 1;
    images = rows == tile_rows ? share(N, most / (rows * cols)) : 1;
  }

  int64_t count() const { return ceil_div(N, images) * ceil_div(tile_rows, rows) * ceil_div(tile_cols, cols); }
  int64_t max_tiles() const { return images * rows * cols; }

  Tiles operator[](int64_t i) const {
    const int64_t row_blocks = ceil_div(tile_rows, rows), col_blocks = ceil_div(tile_cols, cols);
    const int64_t col = i % col_blocks * cols, row = i / col_blocks % row_blocks * rows;
    const int64_t n = i / col_blocks / row_blocks * images;
    return {.n = n,
            .images = std::min(images, N - n),
            .row = row,
            .rows = std::min(rows, tile_rows - row),
            .col = col,
            .cols = std::min(cols, tile_cols - col)};
  }
};

// A stack of 36 matrices, [plane][row][pitch].
template <class T>
struct PlaneStack {
  static constexpr int64_t gap = 16;  // elements between the matrices, which spreads them over the cache sets

  T* data;
  int64_t pitch, plane;  // elements from one row, and from one plane, to the next

  // Takes memory for `stacks` stacks.
  PlaneStack(int64_t rows, int64_t pitch, Scratch& scratch, int64_t stacks = 1)
      : data(scratch.take<T>(stacks * size(rows, pitch))), pitch(pitch), plane(rows * pitch + gap) {}

  static int64_t size(int64_t rows, int64_t pitch) { return planes * (rows * pitch + gap); }

  // Changes the number of rows, which must not grow.
  void resize(int64_t rows) { plane = rows * pitch + gap; }

  // Stack i of several.
  PlaneStack stack(int64_t i) const { return moved(i * planes * plane); }

  // The part that begins at a row and a column of each plane.
  PlaneStack part(int64_t row, int64_t col) const { return moved(row * pitch + col); }

  T* row(int64_t i, int64_t row) const { return data + i * plane + row * pitch; }

 private:
  PlaneStack moved(int64_t elements) const {
    PlaneStack moved = *this;
    moved.data += elements;
    return moved;
  }
};

// The patch of a line of tiles, [row][column][pitch], with `channels` channels.
template <class T>
struct LinePatch {
  const T* data;
  int64_t cols, pitch, channels;
  Magnitude<T> largest;  // of all elements

  const T* pixel(int64_t i, int64_t j) const { return data + (i * cols + j) * pitch; }
};

// Transforms tiles of in x in elements of x to [plane][tile][channel], for channels [c, c + channels) of the whole
// tensor. Calls inspect(line of tiles, patch) before a line is transformed.
template <class S, int in, class Transform, class Inspect>
void transform_tiles(const Correlation& conv, const Tiles& tiles, int64_t c, int64_t channels, const S* x,
                     const PlaneStack<Acc<S>>& stack, const Transform& transform, const Inspect& inspect) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const int64_t width = round_up(channels, L);
  const int64_t plane = stack.plane;
  T* to = stack.data;
  for (int64_t i = 0; i < tiles.images * tiles.rows; ++i) {
    const Tiles line = tiles.only_row(i);
    Scratch scratch;
    // The patch covers the last tile completely, even if some of its outputs do not exist.
    const Block block{.n = line.n,
                      .n_end = line.n + 1,
                      .p = line.row * tile_size,
                      .p_end = (line.row + 1) * tile_size,
                      .q = line.col * tile_size,
                      .q_end = (line.col + line.cols) * tile_size};
    const Patch patch(conv, block, width);
    T* copy = scratch.take<T>(patch.image_pitch());
    Magnitude<T> largest = 0;
    for (int64_t row = 0; row < in; ++row) {  // while the row is in L1
      read_rows(conv, line.n, patch, row, row + 1, c, channels, x, copy);
      const T* pixels = copy + row * patch.row_pitch();
      largest = std::max(largest, largest_magnitude(pixels, patch.cols.size, channels, width));
    }
    inspect(line, LinePatch<T>{copy, patch.cols.size, width, channels, largest});
    for (int64_t col = 0; col < line.cols; ++col, to += stack.pitch)
      for (int64_t lane = 0; lane < channels; lane += L) {
        const T* corner = copy + col * tile_size * width + lane;
        transform_2d<T, in, 6>(
            [&](auto i, auto j)
                __attribute__((always_inline)) { return load(corner + i * patch.row_pitch() + j * width); },
            transform,
            [&](auto i, auto j, Vector<S> value)
                __attribute__((always_inline)) { store(to + lane + (i * 6 + j) * plane, value); });
      }
  }
}

// Computes V of `tiles`, for input channels [c, c + channels) of the whole tensor. See transform_tiles for `inspect`.
template <class S, class Inspect>
void make_v(const Correlation& conv, const Tiles& tiles, int64_t c, int64_t channels, const S* x,
            const PlaneStack<Acc<S>>& v, const Inspect& inspect) {
  using V = Vector<S>;
  const auto transform = [](const V(&in)[6], V(&out)[6])
                             __attribute__((always_inline)) { transform_input<Acc<S>>(in, out); };
  transform_tiles<S, 6>(conv, tiles, c, channels, x, v, transform, inspect);
}

// Computes U, [plane][input channel][lane], of output channels [k, k + NR) and input channels [c, c + channels) of a
// group. Calls inspect(their largest magnitude).
template <class S, class Inspect>
void make_u(const Correlation& conv, const S* w, int64_t group, int64_t k, int64_t NR, int64_t c, int64_t channels,
            const PlaneStack<Acc<S>>& u, const Inspect& inspect) {
  using T = Acc<S>;
  using V = Vector<S>;
  Scratch scratch;
  const int64_t size = channels * NR, plane = u.plane;
  T* to = u.data;
  T* taps = scratch.take<T>(9 * size);
  pack_weights(conv, w, group, k, NR, c, channels, taps);
  MagnitudeLanes<T> largest{};
  for (int64_t i = 0; i < size; i += lanes<S>)
    transform_2d<T, 3, 6>(
        [&](auto r, auto s) __attribute__((always_inline)) {
          const V tap = load(taps + (r * 3 + s) * size + i);
          largest = larger<T>(largest, magnitudes<T>(tap));
          return tap;
        },
        [](const V(&in)[3], V(&out)[6]) __attribute__((always_inline)) { transform_weights<T>(in, out); },
        [&](auto r, auto s, V value) __attribute__((always_inline)) { store(to + (r * 6 + s) * plane + i, value); });
  inspect(largest_lane<T>(largest));
}

// The output pixels of `tiles`, starting at output channel k of the whole tensor.
template <class S>
Pixels<S> outputs(const Correlation& conv, const Tiles& tiles, int64_t k, S* y) {
  const int64_t p = tiles.row * tile_size, q = tiles.col * tile_size;
  const Block block{.n = tiles.n,
                    .n_end = tiles.n + tiles.images,
                    .p = p,
                    .p_end = std::min(p + tiles.rows * tile_size, conv.rows.out),
                    .q = q,
                    .q_end = std::min(q + tiles.cols * tile_size, conv.cols.out)};
  return {y + k * conv.y.c + tiles.n * conv.y.n + p * conv.y.h + q * conv.y.w, conv.y, block};
}

// The outputs of a row of tiles, in y or in a staging buffer.
template <class T>
struct OutputRow {
  T* to;
  int64_t row_stride, col_stride;
  int64_t height, width, channels;
  bool direct;  // in y: the epilogue is applied here, and no lane beyond the last channel is stored
};

// Computes a row of tiles from M: A^T M A, and the epilogue if the row lies in y. Rows of M are `pitch` elements apart,
// planes `plane`.
template <class T>
void transform_row(const T* m, int64_t pitch, int64_t plane, const OutputRow<T> row, const FusedEpilogue<T>& fused) {
  using V = typename Simd<T>::V;
  constexpr int L = Simd<T>::lanes;
  const bool plain = !row.direct || fused.is_identity();
  for (int64_t q = 0; q < row.width; q += tile_size, m += pitch)
    for (int64_t lane = 0; lane < row.channels; lane += L) {
      const int64_t across = std::min(tile_size, row.width - q);
      const bool whole_vector = !row.direct || row.channels - lane >= L;
      T* corner = row.to + q * row.col_stride + lane;
      const auto transform = [&](const auto& put) __attribute__((always_inline)) {
        transform_2d<T, 6, 4>(
            [&](auto i, auto j) __attribute__((always_inline)) { return load(m + lane + (i * 6 + j) * plane); },
            [](const V(&in)[6], V(&out)[4]) __attribute__((always_inline)) { transform_output<T>(in, out); }, put);
      };
      if (row.height == tile_size && across == tile_size && plain && whole_vector) {
        transform([&](auto i, auto j, V value) __attribute__((always_inline)) {
          store(corner + i * row.row_stride + j * row.col_stride, value);
        });
      } else {
        transform([&](auto i, auto j, V value) __attribute__((always_inline)) {
          if (i >= row.height || j >= across) return;
          if (!plain) value = fused(value, lane);
          T* to = corner + i * row.row_stride + j * row.col_stride;
          if (whole_vector) {
            store(to, value);
          } else {
            store(to, value, row.channels - lane);
          }
        });
      }
    }
}

// Stores a row of tiles, which lies in a staging buffer, to the outputs that begin at `to`, and applies the epilogue.
template <class S>
void store_row(const OutputRow<Acc<S>>& row, const Correlation& conv, S* to, const FusedEpilogue<Acc<S>>& fused) {
  const bool contiguous = row.width == conv.cols.out && conv.y.h == row.width * conv.y.w;
  const int64_t runs = contiguous ? 1 : row.height, pixels = contiguous ? row.height * row.width : row.width;
  for (int64_t i = 0; i < runs; ++i)
    write_tile<S>(row.to + i * row.row_stride, row.col_stride,
                  {.data = to + i * conv.y.h,
                   .rows = pixels,
                   .cols = row.channels,
                   .row_stride = conv.y.w,
                   .col_stride = conv.y.c},
                  fused);
}

// Computes y of `tiles` from M, for output channels [k, k + count) of the whole tensor: A^T M A and the epilogue.
template <class S>
void write_outputs(const Correlation& conv, const Tiles& tiles, const PlaneStack<Acc<S>>& m, int64_t k, int64_t count,
                   S* y, const FusedEpilogue<Acc<S>>& fused) {
  using T = Acc<S>;
  const bool direct = std::is_same_v<S, T> && conv.y.c == 1;
  const int64_t q = tiles.col * tile_size, width = std::min(tiles.cols * tile_size, conv.cols.out - q);
  Scratch scratch;
  T* buffer = direct ? nullptr : scratch.take<T>(tile_size * width * m.pitch);
  for (int64_t i = 0; i < tiles.images * tiles.rows; ++i) {
    const int64_t n = tiles.n + i / tiles.rows, p = (tiles.row + i % tiles.rows) * tile_size;
    S* target = y + n * conv.y.n + k * conv.y.c + p * conv.y.h + q * conv.y.w;
    const OutputRow<T> row{.to = direct ? reinterpret_cast<T*>(target) : buffer,
                           .row_stride = direct ? conv.y.h : width * m.pitch,
                           .col_stride = direct ? conv.y.w : m.pitch,
                           .height = std::min(tile_size, conv.rows.out - p),
                           .width = width,
                           .channels = count,
                           .direct = direct};
    transform_row(m.row(0, i * tiles.cols), m.pitch, m.plane, row, fused);
    if (!direct) store_row(row, conv, target, fused);
  }
}

}  // namespace winograd
