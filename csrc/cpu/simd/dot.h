// The product for few output channels: vectors of A times vectors of B, lanes of the reduction, and at the end the sum
// of each register's lanes. A is read as in `multiply`; B is, for each vector of a run, one vector per output channel.

// Output channels: from as many on as there are lanes, lanes of output channels need fewer products.
template <class T>
constexpr int most_dots = std::min(8, lanes<T> - 1);

// Rows next to so many output channels: the sums, the fewer of both operands, and one more.
constexpr int dot_rows(int channels) {
  int rows = 1;
  while (rows < 8 && (rows + 1) * channels + std::min(rows + 1, channels) + 1 <= registers) ++rows;
  return rows;
}

// The elements of B for a run of `length`, per output channel.
template <class T>
constexpr int64_t dot_length(int64_t length) {
  return (length + lanes<T> - 1) / lanes<T> * lanes<T>;
}

// rows[0][l] becomes the sum of the lanes of rows[l].
template <int block, int n, class V>
INLINE void sum_lanes(V (&rows)[n]) {
  if constexpr (block > 0) {
    unroll<block>([&](auto i) __attribute__((always_inline)) {
      const V a = rows[i], b = rows[i + block];
      rows[i] = interleave<block, false>(a, b, std::make_index_sequence<n>()) +
                interleave<block, true>(a, b, std::make_index_sequence<n>());
    });
    sum_lanes<block / 2>(rows);
  }
}

// Multiplies `rows` rows, at most dot_rows(channels); a has as many pointers as that.
template <class T, int channels>
void multiply_dot(const Product<T>& product, int rows) {
  using V = typename Simd<T>::V;
  constexpr int L = Simd<T>::lanes, MR = dot_rows(channels);
  V sum[MR][channels] = {};
  const T* b = product.b;
  const T* const* a = product.a;
  const auto step = [&](int64_t k, auto... count) __attribute__((always_inline)) {
    V vectors[channels];
    unroll<channels>([&](auto v) __attribute__((always_inline)) { vectors[v] = load(b + v * L); });
    b += channels * L;
    unroll<MR>([&](auto m) __attribute__((always_inline)) {
      const V row = load(a[m] + k, count...);
      unroll<channels>([&](auto v) __attribute__((always_inline)) { sum[m][v] = fma(row, vectors[v], sum[m][v]); });
    });
  };
  for (int64_t i = 0; i < product.runs; ++i) {
    int64_t k = product.offset[i];
    const int64_t end = k + product.length;
    for (; k + L <= end; k += L) step(k);
    if (k < end) step(k, int(end - k));
  }
  constexpr int sums = MR * channels, blocks = (sums - 1) / L + 1;
  T totals[blocks * L + L];
  unroll<blocks>([&](auto block) __attribute__((always_inline)) {
    V part[L];
    unroll<L>([&](auto i) __attribute__((always_inline)) {
      constexpr int at = block * L + i;
      part[i] = at < sums ? sum[at / channels < MR ? at / channels : 0][at % channels] : V{};
    });
    sum_lanes<L / 2>(part);
    store(totals + block * L, part[0]);
  });
  store_rows(product, rows, totals, channels);
}

template <class T, int... channels>
constexpr auto dot_table(std::integer_sequence<int, channels...>) {
  return std::array<void (*)(const Product<T>&, int), sizeof...(channels)>{multiply_dot<T, channels + 1>...};
}

// By the number of output channels less one.
template <class T>
constexpr auto multiply_dots = dot_table<T>(std::make_integer_sequence<int, most_dots<T>>());
