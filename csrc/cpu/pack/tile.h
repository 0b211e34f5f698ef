// Tile copies, which every kernel uses: small matrices between tensors of any strides and dtype and the kernels' own
// layout, rows of contiguous lanes in float or double. Where the lanes of a tensor are contiguous, rows are copied;
// where its rows are (stride 1 from row to row), blocks are transposed in registers; else elements are loaded and
// stored one by one. The fused epilogue is applied on the way out.

// Lane j of the result is a[j] where j & block is 0, else b[j - block]. With `further`, it is a[j + block] or b[j].
template <int block, bool further, class V, size_t... j>
INLINE V interleave(V a, V b, std::index_sequence<j...>) {
  constexpr int n = sizeof...(j);
#if defined(__clang__)
  return __builtin_shufflevector(a, b,
                                 (further ? (j & block ? n + j : j + block) : (j & block ? n + j - block : j))...);
#else
  using Index = std::conditional_t<sizeof(a[0]) == 4, int32_t, int64_t>;
  typedef Index Mask __attribute__((vector_size(sizeof(V))));
  return __builtin_shuffle(a, b,
                           Mask{Index(further ? (j & block ? n + j : j + block) : (j & block ? n + j - block : j))...});
#endif
}

// The steps of a transpose for blocks of `block` x `block` elements and smaller.
template <int block, int n, class V>
INLINE void transpose_blocks(V (&rows)[n]) {
  if constexpr (block > 0) {
    unroll<n>([&](auto i) __attribute__((always_inline)) {
      if constexpr ((i & block) == 0) {
        const V a = rows[i], b = rows[i + block];
        rows[i] = interleave<block, false>(a, b, std::make_index_sequence<n>());
        rows[i + block] = interleave<block, true>(a, b, std::make_index_sequence<n>());
      }
    });
    transpose_blocks<block / 2>(rows);
  }
}

// Transposes a square matrix: rows[i][j] becomes rows[j][i].
template <int n, class V>
INLINE void transpose(V (&rows)[n]) {
  transpose_blocks<n / 2>(rows);
}

// to[i * pitch + j] = from[i * row + j * lane] for i < rows, j < count. If `ahead` is given, the tile that lies `ahead`
// elements further on is prefetched, where lanes are contiguous.
template <class S>
void read_tile(const S* from, int64_t row, int64_t lane, int64_t rows, int64_t count, Acc<S>* to, int64_t pitch,
               int64_t ahead = 0) {
  constexpr int L = lanes<S>;
  if ((lane == 1 || count == 1) && row == count && pitch == count) count *= rows, rows = 1, lane = 1;  // one long row
  if (lane == 1 && count == L) {
    for (int64_t i = 0; i < rows; ++i, from += row, to += pitch) {
      __builtin_prefetch(from + ahead);
      store(to, load(from));
    }
  } else if (lane == 1) {
    for (int64_t i = 0; i < rows; ++i, from += row, to += pitch) {
      for (int64_t j = 0; ahead && j < count; j += 64 / sizeof(S)) __builtin_prefetch(from + ahead + j);
      int64_t j = 0;
      for (; j + L <= count; j += L) store(to + j, load(from + j));
      if (j < count) store(to + j, load(from + j, count - j), count - j);
    }
  } else if (row == 1) {
    for (int64_t j = 0; j < count; j += L)
      for (int64_t i = 0; i < rows; i += L) {
        const S* block = from + i + j * lane;
        Vector<S> v[L];
        if (j + L <= count && i + L <= rows) {
          unroll<L>([&](auto l) __attribute__((always_inline)) { v[l] = load(block + l * lane); });
          transpose(v);
          unroll<L>([&](auto l) __attribute__((always_inline)) { store(to + (i + l) * pitch + j, v[l]); });
        } else {
          const int width = std::min<int64_t>(L, count - j), height = std::min<int64_t>(L, rows - i);
          for (int l = 0; l < L; ++l) v[l] = l < width ? load(block + l * lane, height) : Vector<S>{};
          transpose(v);
          for (int l = 0; l < height; ++l) store(to + (i + l) * pitch + j, v[l], width);
        }
      }
  } else {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < count; ++j) to[i * pitch + j] = Acc<S>(from[i * row + j * lane]);
  }
}

// read_tile for GEMM elements. micro/bf16_pair.h overloads it for bf16 pairs, where `high` is the offset from the first
// element of a pair to the second.
template <class S>
void read_elements(const S* from, int64_t /*high*/, int64_t row, int64_t lane, int64_t rows, int64_t count, Acc<S>* to,
                   int64_t pitch) {
  read_tile(from, row, lane, rows, count, to, pitch);
}

// Whether y is written with non-temporal stores: the whole result (all phases) exceeds 8 MiB, so that the caches would
// not keep it, and a write of `channels` neighbouring channels covers whole cache lines.
template <class S>
bool streams(const Correlation& conv, const S* y, int64_t channels) {
  constexpr double max_cached = 8 << 20;
  const auto is_whole = [](int64_t elements) { return elements * int64_t(sizeof(S)) % 64 == 0; };
  return conv.y.c == 1 && reinterpret_cast<uintptr_t>(y) % 64 == 0 && is_whole(channels) && is_whole(conv.y.n) &&
         is_whole(conv.y.h) && is_whole(conv.y.w) &&
         double(conv.N) * conv.K * conv.rows.out * conv.cols.out * sizeof(S) * conv.phases > max_cached;
}

// The epilogue of an accumulator before its store: activation(accumulator + bias). NaN passes through every activation.
template <class T>
struct FusedEpilogue {
  const T* bias = nullptr;  // [lane], readable up to the end of the last lane's vector; or null
  Activation activation = Activation::none;
  T slope = 0;

  bool is_identity() const { return !bias && activation == Activation::none; }

  INLINE typename Simd<T>::V operator()(typename Simd<T>::V v, int64_t lane) const {
    using V = typename Simd<T>::V;
    if (bias) v = v + load(bias + lane);
    switch (activation) {
      case Activation::none: return v;
      case Activation::relu: return max(V{}, v);
      case Activation::relu6: return min(broadcast(T(6)), max(V{}, v));
      case Activation::leaky_relu: return v < V{} ? v * broadcast(slope) : v;
      default: return lane_by_lane(v);
    }
  }

  // The activations without a vector form.
  __attribute__((noinline)) typename Simd<T>::V lane_by_lane(typename Simd<T>::V v) const {
    for (int i = 0; i < Simd<T>::lanes; ++i) v[i] = activate(activation, v[i], slope);
    return v;
  }
};

// to[i * row + j * lane] = fused(from[i * pitch + j]) for i < rows, j < count, where j is lane first_lane + j of the
// epilogue. Reads whole vectors of `from`.
template <class S>
void write_tile(const Acc<S>* from, int64_t pitch, int64_t rows, int64_t count, S* to, int64_t row, int64_t lane,
                const FusedEpilogue<Acc<S>>& fused, int64_t first_lane) {
  constexpr int L = lanes<S>;
  if (lane == 1) {
    for (int64_t i = 0; i < rows; ++i, from += pitch, to += row) {
      int64_t j = 0;
      for (; j + L <= count; j += L) store(to + j, fused(load(from + j), first_lane + j));
      if (j < count) store(to + j, fused(load(from + j), first_lane + j), count - j);
    }
  } else if (row == 1) {
    for (int64_t j = 0; j < count; j += L)
      for (int64_t i = 0; i < rows; i += L) {
        const Acc<S>* block = from + i * pitch + j;
        S* target = to + i + j * lane;
        Vector<S> v[L];
        if (j + L <= count && i + L <= rows) {
          unroll<L>([&](auto l)
                        __attribute__((always_inline)) { v[l] = fused(load(block + l * pitch), first_lane + j); });
          transpose(v);
          unroll<L>([&](auto l) __attribute__((always_inline)) { store(target + l * lane, v[l]); });
        } else {
          const int width = std::min<int64_t>(L, count - j), height = std::min<int64_t>(L, rows - i);
          for (int l = 0; l < L; ++l) v[l] = l < height ? fused(load(block + l * pitch), first_lane + j) : Vector<S>{};
          transpose(v);
          for (int l = 0; l < width; ++l) store(target + l * lane, v[l], height);
        }
      }
  } else {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < count; j += L) {
        const Vector<S> v = fused(load(from + i * pitch + j), first_lane + j);
        for (int l = 0; l < std::min<int64_t>(L, count - j); ++l) to[i * row + (j + l) * lane] = S(v[l]);
      }
  }
}

// Every kernel uses these: one file per instruction set instantiates them (kernel_table.cpp).
#define TORCHCONV_TILE_COPIES(declares, S)                                                                      \
  declares template void read_tile<S>(const S*, int64_t, int64_t, int64_t, int64_t, Acc<S>*, int64_t, int64_t); \
  declares template void write_tile<S>(const Acc<S>*, int64_t, int64_t, int64_t, S*, int64_t, int64_t,          \
                                       const FusedEpilogue<Acc<S>>&, int64_t);
TORCHCONV_TILE_COPIES(extern, double)
TORCHCONV_TILE_COPIES(extern, float)
TORCHCONV_TILE_COPIES(extern, BFloat16)
TORCHCONV_TILE_COPIES(extern, Half)
