// AMX tiles: matrices of 16 rows of 64 bytes, in eight registers of each thread. One instruction multiplies a tile of
// 16 pixels x 16 bf16 pairs with a tile of 16 pairs x 16 output channels, and accumulates the result in a tile of
// floats.
//
// The compiler's intrinsics of tile loads do not tell it that they read memory (GCC 12), so the instructions are
// written here. Tests on machines without AMX replace them (tests/emulation/amx.h).

#if !defined(TORCHCONV_EMULATED)
// The bytes that ldtilecfg reads.
struct alignas(64) AmxPalette {
  uint8_t palette = 1, first_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

static_assert(sizeof(AmxPalette) == 64);

INLINE void amx_configure() {
  static constexpr AmxPalette palette;
  asm volatile("ldtilecfg %0" ::"m"(palette));
}
INLINE void amx_release() { asm volatile("tilerelease" ::: "memory"); }

template <int tile>
INLINE void amx_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}
// Rows are `stride` bytes apart.
template <int tile>
INLINE void amx_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0, %1, 1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
INLINE void amx_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0, %1, 1)" ::"r"(to), "r"(stride), "i"(tile) : "memory");
}
// c += a b.
template <int c, int a, int b>
INLINE void amx_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
#endif

// The tiles of this thread, for the lifetime of the object. They are released at its end, so that no other code meets a
// configuration that it does not expect.
class AmxTiles {
 public:
  AmxTiles() { amx_configure(); }
  ~AmxTiles() { amx_release(); }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
};

constexpr int64_t amx_rows = 16, amx_lanes = 16, amx_pairs = 16;  // of a tile: rows, floats of a row, or pairs of a row

// The arguments of amx_product: C = A B, or C += A B. A has rows of bf16 pairs, in `runs` runs of `steps` tiles each.
// Its rows are split into two tiles, which may lie apart. Up to four tiles of C are accumulated at once.
struct AmxProduct {
  const BFloat16* a[2];     // the first row of each tile
  int64_t a_stride;         // elements from row to row
  const int64_t* a_offset;  // of each run, in elements
  const Bf16Pair* b;        // [run][step][pair][lane], 16 or 32 lanes
  int64_t b_stride;         // pairs from row to row
  int64_t runs, steps;
  float* c[2];       // the rows of C that belong to a[0] and a[1]
  int64_t c_stride;  // floats from row to row
  bool add;
};

// M tiles of rows x N tiles of lanes.
template <int M, int N>
void amx_product(const AmxProduct& product) {
  const int64_t a_stride = product.a_stride * 2, b_stride = product.b_stride * 4, c_stride = product.c_stride * 4;
  const auto each_c = [&](const auto& body) __attribute__((always_inline)) {
    unroll<M * N>([&](auto i) __attribute__((always_inline)) { body(i, product.c[i / N] + i % N * amx_lanes); });
  };
  each_c([&](auto i, float* c) __attribute__((always_inline)) {
    if (product.add) {
      amx_load<i>(c, c_stride);
    } else {
      amx_zero<i>();
    }
  });
  const Bf16Pair* b = product.b;
  for (int64_t run = 0; run < product.runs; ++run) {
    const BFloat16 *first = product.a[0] + product.a_offset[run], *second = product.a[M - 1] + product.a_offset[run];
    for (int64_t step = 0; step < product.steps; ++step) {
      amx_load<4>(first, a_stride);
      amx_load<6>(b, b_stride);
      amx_multiply<0, 4, 6>();
      if constexpr (N == 2) {
        amx_load<7>(b + amx_lanes, b_stride);
        amx_multiply<1, 4, 7>();
      }
      if constexpr (M == 2) {
        amx_load<5>(second, a_stride);
        amx_multiply<N, 5, 6>();
        if constexpr (N == 2) amx_multiply<3, 5, 7>();
      }
      first += 2 * amx_pairs;
      second += 2 * amx_pairs;
      b += amx_pairs * product.b_stride;
    }
  }
  each_c([&](auto i, float* c) __attribute__((always_inline)) { amx_store<i>(c, c_stride); });
}

// M and N are 1 or 2.
INLINE void multiply_tiles(const AmxProduct& product, int64_t M, int64_t N) {
  if (M == 2) {
    N == 2 ? amx_product<2, 2>(product) : amx_product<2, 1>(product);
  } else {
    N == 2 ? amx_product<1, 2>(product) : amx_product<1, 1>(product);
  }
}
