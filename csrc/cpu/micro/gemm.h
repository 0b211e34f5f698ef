// The two GEMM register tiles of gemm and winograd. Both keep MR rows x NV vectors of accumulators in registers. Each
// step of the reduction multiplies MR broadcast elements of A with NV vectors of B. An element E is a float or a
// double, or a bf16 pair where the machine multiplies those (bf16_pair.h). The loops are folds rather than `unroll`,
// because compile time and memory grow with the number of lambdas.

// Steps of the reduction that gemm_tile unrolls. With one vector of B, a tile has more rows than there are
// registers for their addresses: each address is loaded once for all these steps.
template <int NV>
constexpr int steps_together = NV > 1           ? 1
                               : registers > 16 ? 4
                                                : 2;

// Rows of a register tile: as many as fit into the registers beside the vectors of B, one broadcast element and one
// spare register.
template <int NV>
constexpr int max_rows = (registers - NV * steps_together<NV> - 2) / NV;

// Longer reductions are cut: 256 products are accumulated in registers, and then the partial sums are added, which
// keeps the rounding error small (figures in docs/kernels.md).
constexpr int64_t max_reduction = 256;

// Prefetches rows into the cache, a few cache lines per call.
template <class E>
class PrefetchRows {
 public:
  PrefetchRows() = default;

  // Prefetches `count` rows of `length` elements, spread over `calls` calls.
  PrefetchRows(const E* const* rows, int64_t count, int64_t length, int64_t calls)
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

constexpr int64_t steps_per_prefetch = 16;  // steps of the reduction between two calls of PrefetchRows

// The arguments of gemm_tile: C = fused(A B + from).
template <class E, class Out = Acc<E>>
struct GemmTile {
  // A, in `runs` runs of `length` steps: step k of run i in row m is a[m][offset[i] + k]. B: NV vectors for each step.
  const E* const* a;
  const int64_t* offset;
  int64_t runs, length;
  const E* b;
  // C: row m begins at c[m] + lane. Its first `count` lanes are stored.
  Out* const* c;
  int64_t lane, count;
  const Acc<E>* const* from;           // rows that are added to the product, which may lie in C; or null
  const FusedEpilogue<Acc<E>>* fused;  // or null
  PrefetchRows<E>* prefetch;           // called every steps_per_prefetch steps
  bool stream;                         // non-temporal stores; never where results are rounded to a smaller dtype
};

// The general store: adds `from`, applies the fused epilogue and stores the accumulators of `rows` rows, `pitch` lanes
// each, also where the last vector is partial.
template <class E, class Out>
void store_rows(const GemmTile<E, Out>& product, int rows, const Acc<E>* accumulators, int64_t pitch) {
  using V = Vector<E>;
  constexpr int L = lanes<E>;
  for (int m = 0; m < rows; ++m, accumulators += pitch) {
    Out* c = product.c[m] + product.lane;
    for (int64_t lane = 0; lane < std::min(pitch, product.count); lane += L) {
      const int64_t count = product.count - lane;
      V acc = load(accumulators + lane);
      if (product.from) acc = acc + (count >= L ? load(product.from[m] + lane) : load(product.from[m] + lane, count));
      if (product.fused) acc = (*product.fused)(acc, product.lane + lane);
      if (count >= L) {
        store(c + lane, acc);
      } else {
        store(c + lane, acc, count);
      }
    }
  }
}

// Computes a tile of MR rows x NV vectors. Each row of A has a pointer.
template <class E, class Out, int MR, int NV>
void gemm_tile(const GemmTile<E, Out>& product) {
  using T = Acc<E>;
  constexpr int L = lanes<E>;
  Vector<E> acc[MR][NV] = {};
  const E* b = product.b;
  const E* const* rows = product.a;
  // Steps [k, k + together) of the reduction.
  const auto step = [&](int64_t k, auto together) __attribute__((always_inline)) {
    decltype(load(b)) vectors[together][NV];
    fold<together * NV>([&]<int... i>(Indices<i...>)
                            __attribute__((always_inline)) { ((vectors[i / NV][i % NV] = load(b + i * L)), ...); });
    b += together * NV * L;
    constexpr int per_row = together * NV;
    fold<MR * per_row>([&]<int... i>(Indices<i...>) __attribute__((always_inline)) {
      ((acc[i / per_row][i % NV] = fma(broadcast(rows[i / per_row][k + i / NV % together]),
                                       vectors[i / NV % together][i % NV], acc[i / per_row][i % NV])),
       ...);
    });
  };
  // C is prefetched for writing; non-temporal stores do not need it.
  if (!product.stream)
    fold<MR * NV>([&]<int... i>(Indices<i...>) __attribute__((always_inline)) {
      (__builtin_prefetch(product.c[i / NV] + product.lane + i % NV * L, 1), ...);
    });
  for (int64_t i = 0; i < product.runs; ++i) {
    const int64_t begin = product.offset[i], end = begin + product.length;
    int64_t k = begin;
    while (k + 4 <= end) {
      const int64_t pause = std::min(k + steps_per_prefetch, end - 3);
      (*product.prefetch)();
      for (; k < pause; k += 4)
        unroll<4 / steps_together<NV>>([&](auto u) __attribute__((always_inline)) {
          step(k + u * steps_together<NV>, std::integral_constant<int, steps_together<NV>>());
        });
    }
    for (; k < end; ++k) step(k, std::integral_constant<int, 1>());
  }
  if (!product.fused && product.count >= NV * L) {
    unroll<MR>([&](auto m) __attribute__((always_inline)) {
      Out* c = product.c[m] + product.lane;
      if (product.from) {
        const T* from = product.from[m];
        fold<NV>([&]<int... v>(Indices<v...>)
                     __attribute__((always_inline)) { ((acc[m][v] = acc[m][v] + load(from + v * L)), ...); });
      }
      if (product.stream) {
        fold<NV>([&]<int... v>(Indices<v...>) __attribute__((always_inline)) { (stream(c + v * L, acc[m][v]), ...); });
      } else {
        fold<NV>([&]<int... v>(Indices<v...>) __attribute__((always_inline)) { (store(c + v * L, acc[m][v]), ...); });
      }
    });
  } else {
    T rows[MR][NV * L];
    fold<MR * NV>([&]<int... i>(Indices<i...>)
                      __attribute__((always_inline)) { (store(rows[i / NV] + i % NV * L, acc[i / NV][i % NV]), ...); });
    store_rows(product, MR, rows[0], NV * L);
  }
}

// The arguments of outer_gemm_tile, a sum of outer products: both operands are read along their lanes. Over all
// segments i and their steps k, C[m, n] is the sum of
// a[a_offset[i] + k * a_step + m] * b[b_offset[i] + k * b_step + n].
template <class E>
struct OuterGemmTile {
  const E *a, *b;
  const int64_t *a_offset, *b_offset;
  int64_t segments, length, a_step, b_step;  // `length` steps per segment
  Acc<E>* c;
  int64_t pitch;  // from one row of C to the next
  bool add;       // add to C instead of overwriting it
};

// Computes a tile of MR rows x NV vectors.
template <class E, int MR, int NV>
void outer_gemm_tile(const OuterGemmTile<E>& product) {
  constexpr int L = lanes<E>;
  Vector<E> acc[MR][NV] = {};
  const int64_t a_step = product.a_step, b_step = product.b_step;
  for (int64_t i = 0; i < product.segments; ++i) {
    const E *a = product.a + product.a_offset[i], *b = product.b + product.b_offset[i];
    const auto step = [&]() __attribute__((always_inline)) {
      decltype(load(b)) vectors[NV];
      fold<NV>([&]<int... v>(Indices<v...>) __attribute__((always_inline)) { ((vectors[v] = load(b + v * L)), ...); });
      fold<MR * NV>([&]<int... i>(Indices<i...>) __attribute__((always_inline)) {
        ((acc[i / NV][i % NV] = fma(broadcast(a[i / NV]), vectors[i % NV], acc[i / NV][i % NV])), ...);
      });
      a += a_step;
      b += b_step;
    };
    int64_t k = 0;
    for (; k + 2 <= product.length; k += 2) {
      step();
      step();
    }
    if (k < product.length) step();
  }
  unroll<MR * NV>([&](auto i) __attribute__((always_inline)) {
    Acc<E>* c = product.c + i / NV * product.pitch + i % NV * L;
    store(c, product.add ? load(c) + acc[i / NV][i % NV] : acc[i / NV][i % NV]);
  });
}

// gemm_tile and outer_gemm_tile for a number of rows that is known at run time: by_rows[m - 1] computes m rows.
template <class E, int NV, class Out = Acc<E>>
struct GemmTiles {
  using Function = void (*)(const GemmTile<E, Out>&);
  static const std::array<Function, max_rows<NV>> by_rows;

  template <int... m>
  static constexpr std::array<Function, max_rows<NV>> table(std::integer_sequence<int, m...>) {
    return {gemm_tile<E, Out, m + 1, NV>...};
  }
};

template <class E, int NV>
struct OuterGemmTiles {
  using Function = void (*)(const OuterGemmTile<E>&);
  static const std::array<Function, max_rows<NV>> by_rows;

  template <int... m>
  static constexpr std::array<Function, max_rows<NV>> table(std::integer_sequence<int, m...>) {
    return {outer_gemm_tile<E, m + 1, NV>...};
  }
};

template <class E, int NV, class Out>
constinit const std::array<typename GemmTiles<E, NV, Out>::Function, max_rows<NV>> GemmTiles<E, NV, Out>::by_rows =
    table(std::make_integer_sequence<int, max_rows<NV>>());

template <class E, int NV>
constinit const std::array<typename OuterGemmTiles<E, NV>::Function, max_rows<NV>> OuterGemmTiles<E, NV>::by_rows =
    table(std::make_integer_sequence<int, max_rows<NV>>());

// These tiles are most of the machine code: one file per instruction set instantiates them (micro_gemm.cpp), and the
// others declare them `extern`.
#define TORCHCONV_GEMM_TILES(declares, E)        \
  declares template struct GemmTiles<E, 1>;      \
  declares template struct GemmTiles<E, 2>;      \
  declares template struct OuterGemmTiles<E, 1>; \
  declares template struct OuterGemmTiles<E, 2>;
TORCHCONV_GEMM_TILES(extern, double)
TORCHCONV_GEMM_TILES(extern, float)
#if defined(TORCHCONV_BF16_PAIRS)
TORCHCONV_GEMM_TILES(extern, Bf16Pair)
extern template struct GemmTiles<Bf16Pair, 1, BFloat16>;
extern template struct GemmTiles<Bf16Pair, 2, BFloat16>;
#endif
