// winograd: 3x3, stride 1, with 36 multiplications for 16 outputs where the plain sum has 144. See docs/kernels.md.
//
// F(4x4, 3x3) of Lavin and Gray (arXiv:1509.09308) with the points {0, +-3/4, +-3/2, infinity}: all constants of the
// transforms of inputs and outputs are exact in binary, and the error is half of that of {0, +-1, +-2, infinity}.
//
//   V[plane] = (B^T d B)   6x6 inputs of a tile       [plane][tile][channel]
//   U[plane] = (G g G^T)   3x3 taps                   [plane][channel][lane: output channel]
//   M[plane] = V U         36 small matrix products   [plane][tile][lane]
//   y        = (A^T M A)   4x4 outputs of the tile

namespace winograd {

constexpr int planes = 36;

// With p = 3/4 and q = 3/2, +-p and +-q being the points.
constexpr double p2 = 0.5625, q2 = 2.25;

// B^T d: rows of coefficients of M(x) / (x - point), and of M(x) = x (x^2 - p^2) (x^2 - q^2) for infinity.
template <class T, class V>
INLINE void transform_input(const V (&d)[6], V (&out)[6]) {
  const V p = broadcast(T(0.75)), q = broadcast(T(1.5));
  const V product = broadcast(T(p2 * q2)), sum = broadcast(T(-p2 - q2));
  const V minus_p2 = broadcast(T(-p2)), minus_q2 = broadcast(T(-q2));
  out[0] = fma(product, d[0], fma(sum, d[2], d[4]));
  const V even_p = fma(minus_q2, d[2], d[4]), odd_p = fma(minus_q2, d[1], d[3]);
  out[1] = fma(p, odd_p, even_p);
  out[2] = fma(-p, odd_p, even_p);
  const V even_q = fma(minus_p2, d[2], d[4]), odd_q = fma(minus_p2, d[1], d[3]);
  out[3] = fma(q, odd_q, even_q);
  out[4] = fma(-q, odd_q, even_q);
  out[5] = fma(product, d[1], fma(sum, d[3], d[5]));
}

// G g: the taps as a polynomial at each point, over the product of the point's distances from the others.
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

// A^T m: powers of the points.
template <class T, class V>
INLINE void transform_output(const V (&m)[6], V (&out)[4]) {
  const V even_p = m[1] + m[2], odd_p = m[1] - m[2], even_q = m[3] + m[4], odd_q = m[3] - m[4];
  out[0] = m[0] + even_p + even_q;
  out[1] = fma(broadcast(T(0.75)), odd_p, broadcast(T(1.5)) * odd_q);
  out[2] = fma(broadcast(T(p2)), even_p, broadcast(T(q2)) * even_q);
  out[3] = fma(broadcast(T(0.75 * p2)), odd_p, fma(broadcast(T(1.5 * q2)), odd_q, m[5]));
}

// transform(transform(from)^T)^T for a matrix of vectors: from(i, j) is read, to(i, j, vector) is called.
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

// Tiles of `rows` x `cols` tiles in each of some images; each tile is 4x4 outputs.
struct Tiles {
  int64_t n, images, row, rows, col, cols;

  int64_t count() const { return images * rows * cols; }
};

// How an image set is cut into Tiles of at most `most` tiles.
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

// A stack of 36 matrices. The gap between them keeps them out of each other's cache sets.
struct Stack {
  int64_t pitch, plane;

  Stack(int64_t rows, int64_t pitch) : pitch(pitch), plane(rows * pitch + 16) {}
  int64_t size() const { return planes * plane; }
};

// The transforms of tiles of in x in elements of x, channels [c, c + channels) of the whole tensor.
template <class S, int in, class Transform>
void transform_tiles(const Correlation& conv, const Tiles& tiles, int64_t c, int64_t channels, const S* x, Sum<S>* to,
                     const Stack& stack, const Transform& transform) {
  using T = Sum<S>;
  constexpr int L = lanes<S>;
  const int64_t width = (channels + L - 1) / L * L;
  for (int64_t n = tiles.n; n < tiles.n + tiles.images; ++n)
    for (int64_t row = tiles.row; row < tiles.row + tiles.rows; ++row) {
      Scratch scratch;
      // The patch reaches to the end of the last tile, outputs that do not exist included.
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

// V of channels [c, c + channels) of the whole tensor.
template <class S>
void make_v(const Correlation& conv, const Tiles& tiles, int64_t c, int64_t channels, const S* x, Sum<S>* v,
            const Stack& stack) {
  using V = Vector<S>;
  transform_tiles<S, 6>(conv, tiles, c, channels, x, v, stack,
                        [](const V(&in)[6], V(&out)[6])
                            __attribute__((always_inline)) { transform_input<Sum<S>>(in, out); });
}

// U of output channels [k, k + NR) and input channels [c, c + channels) of a group.
template <class S>
void make_u(const Correlation& conv, const S* w, int64_t group, int64_t k, int64_t NR, int64_t c, int64_t channels,
            Sum<S>* u, const Stack& stack) {
  using T = Sum<S>;
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

// M (+)= V U over `channels` channels; between its products, `meanwhile` is called as often as there are planes.
template <class T, class Meanwhile>
void multiply_planes(const T* v, const Stack& v_stack, const T* u, const Stack& u_stack, T* m, const Stack& m_stack,
                     int64_t tiles, int64_t channels, bool add, Meanwhile& meanwhile) {
  const bool wide = m_stack.pitch > Simd<T>::lanes;
  const int64_t no_offset = 0, parts = (tiles - 1) / (wide ? most_rows<2> : most_rows<1>)+1;
  Product<T> product{};
  product.offset = &no_offset, product.runs = 1, product.length = channels;
  product.add = add, product.count = m_stack.pitch;
  for (int64_t plane = 0; plane < planes; ++plane) {
    meanwhile();
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = tiles * part / parts, end = tiles * (part + 1) / parts;
      const T* a[most_rows<1>];
      T* c[most_rows<1>];
      for (int64_t i = begin; i < end; ++i) {
        a[i - begin] = v + plane * v_stack.plane + i * v_stack.pitch;
        c[i - begin] = m + plane * m_stack.plane + i * m_stack.pitch;
      }
      product.a = a, product.b = u + plane * u_stack.plane, product.c = c;
      // The rows of the next product follow these.
      const T* next = a[0] + (end - begin) * v_stack.pitch;
      FetchRows<T> fetch;
      if (v_stack.pitch == channels) fetch = {&next, 1, (end - begin) * channels, (channels - 1) / steps_per_fetch + 1};
      product.fetch = &fetch;
      if (wide) {
        multiply_rows<T, 2>[end - begin - 1](product);
      } else {
        multiply_rows<T, 1>[end - begin - 1](product);
      }
    }
  }
}

// The outputs of `tiles`, from output channel k of the whole tensor on.
template <class S>
Pixels<S> outputs(const Correlation& conv, const Tiles& tiles, int64_t k, S* y) {
  const int64_t p = tiles.row * 4, q = tiles.col * 4;
  const Block block{tiles.n, tiles.n + tiles.images,
                    p,       std::min(p + tiles.rows * 4, conv.rows.out),
                    q,       std::min(q + tiles.cols * 4, conv.cols.out)};
  return {y + k * conv.y.c + tiles.n * conv.y.n + p * conv.y.h + q * conv.y.w, conv.y, block};
}

// y of `tiles`, output channels [k, k + count) of the whole tensor, from M.
template <class S>
void write_outputs(const Correlation& conv, const Tiles& tiles, const Sum<S>* m, const Stack& stack, int64_t k,
                   int64_t count, S* y, const Finish<Sum<S>>& finish) {
  using T = Sum<S>;
  using V = Vector<S>;
  constexpr int L = lanes<S>;
  const bool direct = std::is_same_v<S, T> && conv.y.c == 1, plain = !direct || finish.does_nothing();
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
              if (!plain) value = finish(value, lane);
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
      if (whole) write_tile(to, NR, height * width, count, target, conv.y.w, conv.y.c, finish, 0);
      for (int64_t i = 0; i < height && !whole; ++i)
        write_tile(to + i * to_h, NR, width, count, target + i * conv.y.h, conv.y.w, conv.y.c, finish, 0);
    }
}

// What fits where, in bytes.
constexpr int64_t own_v = 384 << 10;   // V of one unit, in L2
constexpr int64_t all_u = 3 << 20;     // U that is made once and read by all units, from L3
constexpr int64_t longest_sum = 768;   // channels, in one go
constexpr int64_t shared_v = 6 << 20;  // V that is read by all units, from L3
constexpr int64_t most_tiles = 112;    // of M, next to a slab of U, in L2
constexpr int64_t slab_channels = 64;

// Under a dilated kernel, outputs dilation, 2 dilation, ... apart read inputs that are as far apart: outputs offset,
// offset + dilation, ... are a problem of their own, without dilation, on inputs first, first + dilation, ...
struct SparsePhase {
  Axis axis;
  int64_t first;

  SparsePhase(const Axis& dilated, int64_t offset) : axis(dilated) {
    const int64_t D = dilated.dilation, position = dilated.position(offset, 0);
    axis.pad = position >= 0 ? -(position / D) : (-position - 1) / D + 1;
    first = position + axis.pad * D;
    axis.in = dilated.in > first ? (dilated.in - first - 1) / D + 1 : 0;
    axis.out = (dilated.out - offset - 1) / D + 1;
    axis.dilation = 1;
  }
};

// What both ways of a correlation know.
template <class S>
struct Problem {
  using T = Sum<S>;

  const Correlation& conv;
  int64_t C, K, NR, panels;  // of a group
  const T* bias;             // [group][panel][lane], or null
  const Epilogue& epilogue;

  Problem(const Correlation& conv, const Epilogue& epilogue, Scratch& scratch)
      : conv(conv),
        C(conv.C_per_group()),
        K(conv.K_per_group()),
        NR(K <= lanes<S> ? lanes<S> : 2 * lanes<S>),
        panels((K - 1) / NR + 1),
        bias(nullptr),
        epilogue(epilogue) {
    if (!epilogue.bias) return;
    T* copy = scratch.take<T>(conv.groups * panels * NR);
    for (int64_t k = 0; k < conv.K; ++k)
      copy[k / K * panels * NR + k % K] = T(static_cast<const S*>(epilogue.bias)[k * epilogue.bias_stride]);
    bias = copy;
  }

  // Multiplications of a tile and a panel.
  double products() const { return double(planes) * C * NR; }

  int64_t channels(int64_t panel) const { return std::min(NR, K - panel * NR); }

  FetchPixels<S, true> fetch(const Tiles& tiles, int64_t group, int64_t panel, S* y) const {
    return {outputs(conv, tiles, group * K + panel * NR, y), 0, channels(panel), planes};
  }

  void write(const Tiles& tiles, const T* m, const Stack& stack, int64_t group, int64_t panel, S* y) const {
    const Finish<T> finish{bias ? bias + (group * panels + panel) * NR : nullptr, epilogue.activation,
                           T(epilogue.slope)};
    write_outputs(conv, tiles, m, stack, group * K + panel * NR, channels(panel), y, finish);
  }
};

// Few weights: U is made once, and each unit keeps the V of a few tiles. Groups [begin, end) are done together.
template <class S>
void correlate_own_v(const Problem<S>& problem, int64_t begin, int64_t end, const S* x, const S* w, S* y) {
  using T = Sum<S>;
  constexpr int L = lanes<S>;
  const Correlation& conv = problem.conv;
  const int64_t C = problem.C, NR = problem.NR, panels = problem.panels, groups = end - begin;
  const Stack u_stack(C, NR);
  Scratch scratch;
  T* u = scratch.take<T>(groups * panels * u_stack.size());
  parallel_for(groups * panels, 2 * problem.products(), [&](int64_t unit) {
    make_u(conv, w, begin + unit / panels, unit % panels * NR, NR, 0, C, u + unit * u_stack.size(), u_stack);
  });
  const int64_t most = NR > L ? 2 * most_rows<2> : 2 * most_rows<1>;
  const Cut cut(conv, std::clamp<int64_t>(own_v / int64_t(sizeof(T)) / planes / C, 1, most));
  // For many threads, units of fewer panels, although each then makes its V.
  const int64_t parts = cut.count() * groups;
  int64_t per_unit = panels;
  while (per_unit > 1 && parts * ((panels - 1) / per_unit + 1) < thread_count()) per_unit = (per_unit + 1) / 2;
  const int64_t sets = (panels - 1) / per_unit + 1;
  const double work = problem.products() * per_unit * cut.images * cut.rows * cut.cols;
  parallel_for(parts * sets, work, [&](int64_t unit) {
    const FlushSubnormals flush;
    const int64_t first = unit % sets * per_unit, part = unit / sets;
    const Tiles tiles = cut[part % cut.count()];
    const int64_t group = part / cut.count();  // of those that are done together
    const Stack v_stack(tiles.count(), (C + L - 1) / L * L), m_stack(tiles.count(), NR);
    Scratch scratch;
    T *v = scratch.take<T>(v_stack.size()), *m = scratch.take<T>(m_stack.size());
    make_v(conv, tiles, (begin + group) * C, C, x, v, v_stack);
    for (int64_t panel = first; panel < std::min(first + per_unit, panels); ++panel) {
      auto fetch = problem.fetch(tiles, begin + group, panel, y);
      multiply_planes(v, v_stack, u + (group * panels + panel) * u_stack.size(), u_stack, m, m_stack, tiles.count(), C,
                      false, fetch);
      problem.write(tiles, m, m_stack, begin + group, panel, y);
    }
  });
}

// Many weights: each unit makes the U of its output channels slab by slab, and all share the V of many tiles.
template <class S>
void correlate_shared_v(const Problem<S>& problem, int64_t group, const S* x, const S* w, S* y) {
  using T = Sum<S>;
  const Correlation& conv = problem.conv;
  const int64_t C = problem.C, NR = problem.NR;
  const Cut cut(conv, std::clamp<int64_t>(shared_v / int64_t(sizeof(T)) / planes / C, 1, most_tiles));
  const int64_t slabs = (C - 1) / slab_channels + 1;
  Scratch scratch;
  T* v = scratch.take<T>(slabs * Stack(cut.images * cut.rows * cut.cols, slab_channels).size());
  for (int64_t part = 0; part < cut.count(); ++part) {
    const Tiles tiles = cut[part];
    const Stack v_stack(tiles.count(), slab_channels);
    const int64_t rows = tiles.images * tiles.rows;
    parallel_for(rows * slabs, double(planes) * 16 * tiles.cols * slab_channels, [&](int64_t unit) {
      const FlushSubnormals flush;
      const int64_t row = unit / slabs, slab = unit % slabs, c = slab * slab_channels;
      const Tiles one{tiles.n + row / tiles.rows, 1, tiles.row + row % tiles.rows, 1, tiles.col, tiles.cols};
      make_v(conv, one, group * C + c, std::min(slab_channels, C - c), x,
             v + slab * v_stack.size() + row * tiles.cols * slab_channels, v_stack);
    });
    // For many threads, units of fewer tiles, although each then makes its U: some images, or else some rows.
    const int64_t lines = tiles.images > 1 ? tiles.images : tiles.rows;
    const int64_t parts = std::clamp<int64_t>((thread_count() - 1) / problem.panels + 1, 1, lines);
    parallel_for(problem.panels * parts, problem.products() * tiles.count() / parts, [&](int64_t unit) {
      const FlushSubnormals flush;
      const int64_t panel = unit % problem.panels, part = unit / problem.panels;
      const int64_t line = lines * part / parts, count = lines * (part + 1) / parts - line;
      Tiles own = tiles;
      tiles.images > 1 ? (own.n += line, own.images = count) : (own.row += line, own.rows = count);
      const int64_t first = tiles.count() / lines * line;
      const Stack m_stack(own.count(), NR);
      Scratch scratch;
      const Stack u_slab(slab_channels, NR);
      T *u = scratch.take<T>(u_slab.size()), *m = scratch.take<T>(m_stack.size());
      auto fetch = problem.fetch(own, group, panel, y);
      const auto wait = [] {};
      for (int64_t slab = 0; slab < slabs; ++slab) {
        const int64_t c = slab * slab_channels, channels = std::min(slab_channels, C - c);
        make_u(conv, w, group, panel * NR, NR, c, channels, u, u_slab);
        const T* v_slab = v + slab * v_stack.size() + first * v_stack.pitch;
        if (slab + 1 < slabs) {
          multiply_planes(v_slab, v_stack, u, u_slab, m, m_stack, own.count(), channels, slab > 0, wait);
        } else {
          multiply_planes(v_slab, v_stack, u, u_slab, m, m_stack, own.count(), channels, slab > 0, fetch);
        }
      }
      problem.write(own, m, m_stack, group, panel, y);
    });
  }
}

template <class S>
void correlate(const Correlation& conv, const S* x, const S* w, S* y, const Epilogue& epilogue) {
  const int64_t row_dilation = conv.rows.dilation, col_dilation = conv.cols.dilation;
  if (row_dilation > 1 || col_dilation > 1) {
    for (int64_t i = 0; i < std::min(row_dilation, conv.rows.out); ++i)
      for (int64_t j = 0; j < std::min(col_dilation, conv.cols.out); ++j) {
        const SparsePhase rows(conv.rows, i), cols(conv.cols, j);
        Correlation phase = conv;
        phase.rows = rows.axis, phase.cols = cols.axis;
        phase.x.h *= row_dilation, phase.x.w *= col_dilation, phase.y.h *= row_dilation, phase.y.w *= col_dilation;
        correlate(phase, x + rows.first * conv.x.h + cols.first * conv.x.w, w, y + i * conv.y.h + j * conv.y.w,
                  epilogue);
      }
    return;
  }
  Scratch scratch;
  const Problem<S> problem(conv, epilogue, scratch);
  const int64_t u_bytes = problem.panels * Stack(problem.C, problem.NR).size() * int64_t(sizeof(Sum<S>));
  const int64_t together = all_u / u_bytes;  // groups
  if (together > 0 && problem.C <= longest_sum) {
    for (int64_t group = 0; group < conv.groups; group += together)
      correlate_own_v(problem, group, std::min(group + together, conv.groups), x, w, y);
  } else {
    for (int64_t group = 0; group < conv.groups; ++group) correlate_shared_v(problem, group, x, w, y);
  }
}

}  // namespace winograd
