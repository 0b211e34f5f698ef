// The two register-tiled products behind everything dense. Both keep a tile of MR rows x NV vectors of sums in
// registers, and for each step of the reduction multiply MR broadcast elements of A with NV vectors of B. An element E
// is a number, or a pair of numbers where the machine has an instruction for the sum of two products (pairs.h).

// Steps that are done together in `multiply`: with one vector of B there are more rows than registers for their
// addresses, and each is read once for all these steps.
template <int NV>
constexpr int steps_together = NV > 1           ? 1
                               : registers > 16 ? 4
                                                : 2;

// As many rows as registers allow, next to the vectors of B, a broadcast number and one to spare.
template <int NV>
constexpr int most_rows = (registers - NV * steps_together<NV> - 2) / NV;

// Sums of more products than this are cut: so many are added up one by one, then the partial sums, which keeps errors
// small.
constexpr int64_t longest_sum = 256;

// Rows that are fetched into the cache meanwhile.
template <class E>
class FetchRows {
 public:
  FetchRows() = default;

  // `count` rows of `length` elements, over `calls` calls.
  FetchRows(const E* const* rows, int64_t count, int64_t length, int64_t calls)
      : rows_(rows),
        left_(count),
        bytes_(length * sizeof(E)),
        each_((count * ((bytes_ - 1) / 64 + 1) - 1) / calls + 1) {}

  INLINE void operator()() {
    for (int64_t i = 0; i < each_ && left_ > 0; ++i) {
      __builtin_prefetch(reinterpret_cast<const char*>(*rows_) + at_);
      at_ += 64;
      if (at_ >= bytes_) at_ = 0, ++rows_, --left_;
    }
  }

 private:
  const E* const* rows_ = nullptr;
  int64_t left_ = 0, bytes_ = 0, each_ = 0, at_ = 0;
};

constexpr int64_t steps_per_fetch = 16;

template <class E, class Out = Sum<E>>
struct Product {
  // A: row m, step k of run i is a[m][offset[i] + k]. B: consecutive steps of NV vectors.
  const E* const* a;
  const int64_t* offset;
  int64_t runs, length;
  const E* b;
  // C: row m is c[m] + lane, of which the first `count` lanes are stored.
  Out* const* c;
  int64_t lane, count;
  const Sum<E>* const* from;  // rows that the product is added to, which may lie in C; or null
  const Finish<Sum<E>>* finish;
  FetchRows<E>* fetch;  // what is fetched every steps_per_fetch steps
  bool stream;          // past the caches; never where sums are rounded to a smaller dtype
};

// Adds, finishes and stores what is more than a plain tile: `rows` rows of sums.
template <class E, class Out>
void store_rows(const Product<E, Out>& product, int rows, const Sum<E>* sums, int64_t pitch) {
  using V = Vector<E>;
  constexpr int L = lanes<E>;
  for (int m = 0; m < rows; ++m, sums += pitch) {
    Out* c = product.c[m] + product.lane;
    for (int64_t lane = 0; lane < std::min(pitch, product.count); lane += L) {
      const int64_t count = product.count - lane;
      V sum = load(sums + lane);
      if (product.from) sum = sum + (count >= L ? load(product.from[m] + lane) : load(product.from[m] + lane, count));
      if (product.finish) sum = (*product.finish)(sum, product.lane + lane);
      if (count >= L) {
        store(c + lane, sum);
      } else {
        store(c + lane, sum, count);
      }
    }
  }
}

template <class E, class Out, int MR, int NV>
void multiply(const Product<E, Out>& product) {
  using T = Sum<E>;
  constexpr int L = lanes<E>;
  Vector<E> sum[MR][NV] = {};
  const E* b = product.b;
  const E* const* rows = product.a;
  const auto step = [&](int64_t k, auto together) __attribute__((always_inline)) {
    decltype(load(b)) vectors[together][NV];
    unroll<together>([&](auto u) __attribute__((always_inline)) {
      unroll<NV>([&](auto v) __attribute__((always_inline)) { vectors[u][v] = load(b + (u * NV + v) * L); });
    });
    b += together * NV * L;
    unroll<MR>([&](auto m) __attribute__((always_inline)) {
      const E* row = rows[m] + k;
      unroll<together>([&](auto u) __attribute__((always_inline)) {
        const auto element = broadcast(row[u]);
        unroll<NV>([&](auto v) __attribute__((always_inline)) { sum[m][v] = fma(element, vectors[u][v], sum[m][v]); });
      });
    });
  };
  if (!product.stream)
    unroll<MR>([&](auto m) __attribute__((always_inline)) {
      unroll<NV>([&](auto v)
                     __attribute__((always_inline)) { __builtin_prefetch(product.c[m] + product.lane + v * L, 1); });
    });
  for (int64_t i = 0; i < product.runs; ++i) {
    const int64_t begin = product.offset[i], end = begin + product.length;
    int64_t k = begin;
    while (k + 4 <= end) {
      const int64_t pause = std::min(k + steps_per_fetch, end - 3);
      (*product.fetch)();
      for (; k < pause; k += 4)
        unroll<4 / steps_together<NV>>([&](auto u) __attribute__((always_inline)) {
          step(k + u * steps_together<NV>, std::integral_constant<int, steps_together<NV>>());
        });
    }
    for (; k < end; ++k) step(k, std::integral_constant<int, 1>());
  }
  if (!product.finish && product.count >= NV * L) {
    unroll<MR>([&](auto m) __attribute__((always_inline)) {
      Out* c = product.c[m] + product.lane;
      if (product.from) {
        const T* from = product.from[m];
        unroll<NV>([&](auto v) __attribute__((always_inline)) { sum[m][v] = sum[m][v] + load(from + v * L); });
      }
      if (product.stream) {
        unroll<NV>([&](auto v) __attribute__((always_inline)) { stream(c + v * L, sum[m][v]); });
      } else {
        unroll<NV>([&](auto v) __attribute__((always_inline)) { store(c + v * L, sum[m][v]); });
      }
    });
  } else {
    T rows[MR][NV * L];
    unroll<MR>([&](auto m) __attribute__((always_inline)) {
      unroll<NV>([&](auto v) __attribute__((always_inline)) { store(rows[m] + v * L, sum[m][v]); });
    });
    store_rows(product, MR, rows[0], NV * L);
  }
}

// The same with both operands read along their lanes, step by step: C[m, n] is the sum, over segments and their steps
// k, of a[a_offset[segment] + k * a_step + m] * b[b_offset[segment] + k * b_step + n].
template <class E>
struct OuterProduct {
  const E *a, *b;
  const int64_t *a_offset, *b_offset;
  int64_t segments, length, a_step, b_step;
  Sum<E>* c;
  int64_t pitch;
  bool add;
};

template <class E, int MR, int NV>
void multiply_outer(const OuterProduct<E>& product) {
  constexpr int L = lanes<E>;
  Vector<E> sum[MR][NV] = {};
  const int64_t a_step = product.a_step, b_step = product.b_step;
  for (int64_t i = 0; i < product.segments; ++i) {
    const E *a = product.a + product.a_offset[i], *b = product.b + product.b_offset[i];
    const auto step = [&]() __attribute__((always_inline)) {
      decltype(load(b)) vectors[NV];
      unroll<NV>([&](auto v) __attribute__((always_inline)) { vectors[v] = load(b + v * L); });
      unroll<MR>([&](auto m) __attribute__((always_inline)) {
        const auto element = broadcast(a[m]);
        unroll<NV>([&](auto v) __attribute__((always_inline)) { sum[m][v] = fma(element, vectors[v], sum[m][v]); });
      });
      a += a_step, b += b_step;
    };
    int64_t k = 0;
    for (; k + 2 <= product.length; k += 2) step(), step();
    if (k < product.length) step();
  }
  unroll<MR>([&](auto m) __attribute__((always_inline)) {
    unroll<NV>([&](auto v) __attribute__((always_inline)) {
      Sum<E>* c = product.c + m * product.pitch + v * L;
      store(c, product.add ? load(c) + sum[m][v] : sum[m][v]);
    });
  });
}

// multiply and multiply_outer for tile sizes that are known at run time: table[m - 1] is the one of m rows.
template <class E, class Out, int NV, int... m>
constexpr auto multiply_table(std::integer_sequence<int, m...>) {
  return std::array<void (*)(const Product<E, Out>&), sizeof...(m)>{multiply<E, Out, m + 1, NV>...};
}

template <class E, int NV, int... m>
constexpr auto multiply_outer_table(std::integer_sequence<int, m...>) {
  return std::array<void (*)(const OuterProduct<E>&), sizeof...(m)>{multiply_outer<E, m + 1, NV>...};
}

template <class E, int NV, class Out = Sum<E>>
constexpr auto multiply_rows = multiply_table<E, Out, NV>(std::make_integer_sequence<int, most_rows<NV>>());

template <class E, int NV>
constexpr auto multiply_outer_rows = multiply_outer_table<E, NV>(std::make_integer_sequence<int, most_rows<NV>>());
