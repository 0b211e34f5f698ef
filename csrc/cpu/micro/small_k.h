// The GEMM register tile for few output channels (small K): lanes run along the reduction. Vectors of A are multiplied
// with vectors of B, and the lanes of each accumulator are added at the end. A is read as in gemm_tile. B has, for each
// vector of a run, one vector per output channel.

// Maximum number of output channels. With at least as many output channels as lanes, gemm_tile, whose lanes are output
// channels, needs fewer products.
template <class T>
constexpr int max_small_k = std::min(8, lanes<T> - 1);

// Rows of a tile with `channels` output channels, at most 8. The registers hold the accumulators, the vectors of the
// operand that has fewer of them, and one more vector.
constexpr int small_k_rows(int channels) {
  int rows = 1;
  while (rows < 8 && (rows + 1) * channels + std::min(rows + 1, channels) + 1 <= registers) ++rows;
  return rows;
}

// Elements of B per output channel for a run of `length` steps: rounded up to whole vectors.
template <class T>
constexpr int64_t small_k_length(int64_t length) {
  return (length + lanes<T> - 1) / lanes<T> * lanes<T>;
}

// Lane l of rows[0] becomes the sum of the lanes of rows[l].
template <int block, int n, class V>
INLINE void reduce_lanes(V (&rows)[n]) {
  if constexpr (block > 0) {
    unroll<block>([&](auto i) __attribute__((always_inline)) {
      const V a = rows[i], b = rows[i + block];
      rows[i] = interleave<block, false>(a, b, std::make_integer_sequence<int, n>()) +
                interleave<block, true>(a, b, std::make_integer_sequence<int, n>());
    });
    reduce_lanes<block / 2>(rows);
  }
}

// Stores the sums of the lanes of `count` vectors, vector(i) for each i, to totals[i]. Writes up to 2 L elements more.
template <int count, class T, class At>
INLINE void add_lanes(const At& vector, T* totals) {
  using V = typename Simd<T>::V;
  constexpr int L = Simd<T>::lanes;
  unroll<(count - 1) / L + 1>([&](auto block) __attribute__((always_inline)) {
    V part[L];
    unroll<L>([&](auto i) __attribute__((always_inline)) {
      constexpr int at = block * L + i;
      if constexpr (at < count) {
        part[i] = vector(std::integral_constant<int, at>());
      } else {
        part[i] = V{};
      }
    });
    reduce_lanes<L / 2>(part);
    store(totals + block * L, part[0]);
  });
}

// Computes `rows` rows, at most small_k_rows(channels). It always reads small_k_rows(channels) rows, so product.a has
// that many pointers.
template <class T, int channels>
void small_k_tile(const GemmTile<T>& product, int rows) {
  using V = typename Simd<T>::V;
  constexpr int L = Simd<T>::lanes, MR = small_k_rows(channels);
  V acc[MR][channels] = {};
  const T* b = product.b;
  const T* const* a = product.a;
  const auto step = [&](int64_t k, auto... count) __attribute__((always_inline)) {
    V vectors[channels];
    unroll<channels>([&](auto v) __attribute__((always_inline)) { vectors[v] = load(b + v * L); });
    b += channels * L;
    unroll<MR>([&](auto m) __attribute__((always_inline)) {
      const V row = load(a[m] + k, count...);
      unroll<channels>([&](auto v) __attribute__((always_inline)) { acc[m][v] = fma(row, vectors[v], acc[m][v]); });
    });
  };
  for (int64_t i = 0; i < product.runs; ++i) {
    int64_t k = product.offset[i];
    const int64_t end = k + product.length;
    for (; k + L <= end; k += L) step(k);
    if (k < end) step(k, int(end - k));
  }
  T totals[MR * channels + 2 * L];
  add_lanes<MR * channels>([&](auto i) __attribute__((always_inline)) { return acc[i / channels][i % channels]; },
                           totals);
  store_rows(product, rows, totals, channels);
}

template <class T, int... channels>
constexpr auto dot_table(std::integer_sequence<int, channels...>) {
  return std::array<void (*)(const GemmTile<T>&, int), sizeof...(channels)>{small_k_tile<T, channels + 1>...};
}

// small_k_tile, indexed by the number of output channels minus one.
template <class T>
constexpr auto small_k_tiles = dot_table<T>(std::make_integer_sequence<int, max_small_k<T>>());
