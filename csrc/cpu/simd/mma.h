// The two register-tiled products behind everything dense. (Their loops are folds rather than `unroll`: a compiler's
// time and memory go by the number of lambdas.) Both keep a tile of MR rows x NV vectors of sums in
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
    fold<together * NV>([&]<int... i>(Numbers<i...>)
                            __attribute__((always_inline)) { ((vectors[i / NV][i % NV] = load(b + i * L)), ...); });
    b += together * NV * L;
    constexpr int per_row = together * NV;
    fold<MR * per_row>([&]<int... i>(Numbers<i...>) __attribute__((always_inline)) {
      ((sum[i / per_row][i % NV] = fma(broadcast(rows[i / per_row][k + i / NV % together]),
                                       vectors[i / NV % together][i % NV], sum[i / per_row][i % NV])),
       ...);
    });
  };
  if (!product.stream)
    fold<MR * NV>([&]<int... i>(Numbers<i...>) __attribute__((always_inline)) {
      (__builtin_prefetch(product.c[i / NV] + product.lane + i % NV * L, 1), ...);
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
        fold<NV>([&]<int... v>(Numbers<v...>)
                     __attribute__((always_inline)) { ((sum[m][v] = sum[m][v] + load(from + v * L)), ...); });
      }
      if (product.stream) {
        fold<NV>([&]<int... v>(Numbers<v...>) __attribute__((always_inline)) { (stream(c + v * L, sum[m][v]), ...); });
      } else {
        fold<NV>([&]<int... v>(Numbers<v...>) __attribute__((always_inline)) { (store(c + v * L, sum[m][v]), ...); });
      }
    });
  } else {
    T rows[MR][NV * L];
    fold<MR * NV>([&]<int... i>(Numbers<i...>)
                      __attribute__((always_inline)) { (store(rows[i / NV] + i % NV * L, sum[i / NV][i % NV]), ...); });
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
      fold<NV>([&]<int... v>(Numbers<v...>) __attribute__((always_inline)) { ((vectors[v] = load(b + v * L)), ...); });
      fold<MR * NV>([&]<int... i>(Numbers<i...>) __attribute__((always_inline)) {
        ((sum[i / NV][i % NV] = fma(broadcast(a[i / NV]), vectors[i % NV], sum[i / NV][i % NV])), ...);
      });
      a += a_step, b += b_step;
    };
    int64_t k = 0;
    for (; k + 2 <= product.length; k += 2) step(), step();
    if (k < product.length) step();
  }
  unroll<MR * NV>([&](auto i) __attribute__((always_inline)) {
    Sum<E>* c = product.c + i / NV * product.pitch + i % NV * L;
    store(c, product.add ? load(c) + sum[i / NV][i % NV] : sum[i / NV][i % NV]);
  });
}

// multiply and multiply_outer for numbers of rows that are known at run time: by_rows[m - 1] is the one of m rows.
template <class E, int NV, class Out = Sum<E>>
struct Products {
  using Function = void (*)(const Product<E, Out>&);
  static const std::array<Function, most_rows<NV>> by_rows;

  template <int... m>
  static constexpr std::array<Function, most_rows<NV>> table(std::integer_sequence<int, m...>) {
    return {multiply<E, Out, m + 1, NV>...};
  }
};

template <class E, int NV>
struct OuterProducts {
  using Function = void (*)(const OuterProduct<E>&);
  static const std::array<Function, most_rows<NV>> by_rows;

  template <int... m>
  static constexpr std::array<Function, most_rows<NV>> table(std::integer_sequence<int, m...>) {
    return {multiply_outer<E, m + 1, NV>...};
  }
};

template <class E, int NV, class Out>
constinit const std::array<typename Products<E, NV, Out>::Function, most_rows<NV>> Products<E, NV, Out>::by_rows =
    table(std::make_integer_sequence<int, most_rows<NV>>());

template <class E, int NV>
constinit const std::array<typename OuterProducts<E, NV>::Function, most_rows<NV>> OuterProducts<E, NV>::by_rows =
    table(std::make_integer_sequence<int, most_rows<NV>>());

// They are most of the code: one file instantiates them, for several that use them.
#define TORCHCONV_PRODUCTS(declares, E)         \
  declares template struct Products<E, 1>;      \
  declares template struct Products<E, 2>;      \
  declares template struct OuterProducts<E, 1>; \
  declares template struct OuterProducts<E, 2>;
TORCHCONV_PRODUCTS(extern, double)
TORCHCONV_PRODUCTS(extern, float)
#if defined(TORCHCONV_PAIRS)
TORCHCONV_PRODUCTS(extern, Pair)
extern template struct Products<Pair, 1, BFloat16>;
extern template struct Products<Pair, 2, BFloat16>;
#endif
