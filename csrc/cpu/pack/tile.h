// Tile copies, which every kernel uses: small matrices between tensors of any strides and dtype and the kernels' own
// layout, rows of contiguous lanes in float or double. Where the lanes of a tensor are contiguous, rows are copied;
// where its rows are (stride 1, or 2 on some machines, from row to row), blocks are transposed in registers; else
// elements are loaded and stored one by one. The fused epilogue is applied on the way out.

// Lane j of the result is lane index[j] of two vectors, b's lanes after a's.
template <class V, int... index>
INLINE V shuffle(V a, V b, Indices<index...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, index...);
#else
  using Index = std::conditional_t<sizeof(a[0]) == 4, int32_t, int64_t>;
  typedef Index Mask __attribute__((vector_size(sizeof(V))));
  return __builtin_shuffle(a, b, Mask{Index(index)...});
#endif
}

// Lane j of the result is a[j] where j & block is 0, else b[j - block]. With `further`, it is a[j + block] or b[j].
template <int block, bool further, class V, int... j>
INLINE V interleave(V a, V b, Indices<j...>) {
  constexpr int n = sizeof...(j);
  return shuffle(a, b, Indices<(further ? (j & block ? n + j : j + block) : (j & block ? n + j - block : j))...>());
}

// The steps of a transpose for blocks of `block` x `block` elements and smaller.
template <int block, int n, class V>
INLINE void transpose_blocks(V (&rows)[n]) {
  if constexpr (block > 0) {
    unroll<n>([&](auto i) __attribute__((always_inline)) {
      if constexpr ((i & block) == 0) {
        const V a = rows[i], b = rows[i + block];
        rows[i] = interleave<block, false>(a, b, std::make_integer_sequence<int, n>());
        rows[i + block] = interleave<block, true>(a, b, std::make_integer_sequence<int, n>());
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

// A matrix in memory: element (i, j) is data[i * row_stride + j * col_stride].
template <class S>
struct StridedMatrix {
  S* data;
  int64_t rows, cols;
  int64_t row_stride, col_stride;
};

// Copies a matrix with contiguous rows to to[i * pitch + j].
template <class S>
void copy_rows(const StridedMatrix<const S>& from, Acc<S>* to, int64_t pitch, int64_t ahead) {
  constexpr int L = lanes<S>;
  const S* row = from.data;
  if (from.cols == L) {
    for (int64_t i = 0; i < from.rows; ++i, row += from.row_stride, to += pitch) {
      __builtin_prefetch(row + ahead);
      store(to, load(row));
    }
    return;
  }
  for (int64_t i = 0; i < from.rows; ++i, row += from.row_stride, to += pitch) {
    for (int64_t j = 0; ahead && j < from.cols; j += 64 / sizeof(S)) __builtin_prefetch(row + ahead + j);
    int64_t j = 0;
    for (; j + L <= from.cols; j += L) store(to + j, load(row + j));
    if (j < from.cols) store(to + j, load(row + j, from.cols - j), from.cols - j);
  }
}

// Vector v of the elements of n rows, column by column: rows[0][0], rows[1][0], ..., rows[n - 1][0], rows[0][1], ...
template <int n, int v, class V, int... j>
INLINE V column_by_column(const V (&rows)[n], Indices<j...>) {
  constexpr int L = sizeof...(j);
  V result = shuffle(rows[0], rows[0], Indices<((v * L + j) / n)...>());
  unroll<n - 1>([&](auto i) __attribute__((always_inline)) {
    constexpr int row = i + 1;  // other rows keep their lanes
    result = shuffle(result, rows[row], Indices<((v * L + j) % n == row ? L + (v * L + j) / n : j)...>());
  });
  return result;
}

// Copies a matrix of n contiguous columns, such as the channels of an image in NCHW, to rows without gaps.
template <int n, class S>
void copy_few_cols(const StridedMatrix<const S>& from, Acc<S>* to) {
  constexpr int L = lanes<S>;
  int64_t i = 0;
  for (; i + L <= from.rows; i += L) {
    Vector<S> rows[n];
    unroll<n>([&](auto j) __attribute__((always_inline)) { rows[j] = load(from.data + i + j * from.col_stride); });
    unroll<n>([&](auto v) __attribute__((always_inline)) {
      store(to + i * n + v * L, column_by_column<n, v>(rows, std::make_integer_sequence<int, L>()));
    });
  }
  for (; i < from.rows; ++i)
    for (int j = 0; j < n; ++j) to[i * n + j] = Acc<S>(from.data[i + j * from.col_stride]);
}

// Copies a matrix to to[i * pitch + j] by transposing blocks in registers. `step` is the distance of its rows: 1, or 2
// where vectors of every second element can be loaded.
template <int step, class S>
void copy_cols(const StridedMatrix<const S>& from, Acc<S>* to, int64_t pitch) {
  constexpr int L = lanes<S>;
  const auto load_rows = [&](const S* p, int count) __attribute__((always_inline)) {
    if constexpr (step == 2) {
      return load_every_second(p, count);
    } else {
      return count == L ? load(p) : load(p, count);
    }
  };
  for (int64_t j = 0; j < from.cols; j += L)
    for (int64_t i = 0; i < from.rows; i += L) {
      const S* block = from.data + i * step + j * from.col_stride;
      Vector<S> v[L];
      if (j + L <= from.cols && i + L <= from.rows) {
        unroll<L>([&](auto l) __attribute__((always_inline)) { v[l] = load_rows(block + l * from.col_stride, L); });
        transpose(v);
        unroll<L>([&](auto l) __attribute__((always_inline)) { store(to + (i + l) * pitch + j, v[l]); });
      } else {
        const int width = std::min<int64_t>(L, from.cols - j), height = std::min<int64_t>(L, from.rows - i);
        for (int l = 0; l < L; ++l) v[l] = l < width ? load_rows(block + l * from.col_stride, height) : Vector<S>{};
        transpose(v);
        for (int l = 0; l < height; ++l) store(to + (i + l) * pitch + j, v[l], width);
      }
    }
}

// Copies a matrix to to[i * pitch + j]. If `ahead` is given, the matrix that lies `ahead` elements further on is
// prefetched, where rows are contiguous.
template <class S>
void read_tile(const StridedMatrix<const S>& from, Acc<S>* to, int64_t pitch, int64_t ahead = 0) {
  const bool rows_are_contiguous = from.col_stride == 1 || from.cols == 1;
  if (rows_are_contiguous && from.row_stride == from.cols && pitch == from.cols) {  // one long row
    const int64_t elements = from.rows * from.cols;
    copy_rows<S>({from.data, 1, elements, elements, 1}, to, pitch, ahead);
  } else if (from.col_stride == 1) {
    copy_rows(from, to, pitch, ahead);
  } else if (from.row_stride == 1 && pitch == from.cols && from.cols <= 4) {
    switch (from.cols) {
      case 2: return copy_few_cols<2>(from, to);
      case 3: return copy_few_cols<3>(from, to);
      default: return copy_few_cols<4>(from, to);
    }
  } else if (from.row_stride == 1) {
    copy_cols<1>(from, to, pitch);
  } else {
    if constexpr (has_every_second<S>)
      if (from.row_stride == 2 && from.rows > 1) return copy_cols<2>(from, to, pitch);
    for (int64_t i = 0; i < from.rows; ++i)
      for (int64_t j = 0; j < from.cols; ++j)
        to[i * pitch + j] = Acc<S>(from.data[i * from.row_stride + j * from.col_stride]);
  }
}

// read_tile for GEMM elements. micro/bf16_pair.h overloads it for bf16 pairs, where `high` is the offset from the first
// element of a pair to the second.
template <class S>
void read_elements(const StridedMatrix<const S>& from, int64_t /*high*/, Acc<S>* to, int64_t pitch) {
  read_tile(from, to, pitch);
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

// Stores fused(from[i * pitch + j]) to a matrix with contiguous rows.
template <class S>
void write_rows(const Acc<S>* from, int64_t pitch, const StridedMatrix<S>& to, const FusedEpilogue<Acc<S>>& fused) {
  constexpr int L = lanes<S>;
  S* row = to.data;
  for (int64_t i = 0; i < to.rows; ++i, from += pitch, row += to.row_stride) {
    int64_t j = 0;
    for (; j + L <= to.cols; j += L) store(row + j, fused(load(from + j), j));
    if (j < to.cols) store(row + j, fused(load(from + j), j), to.cols - j);
  }
}

// Stores fused(from[i * pitch + j]) to a matrix by transposing blocks in registers. `step` as in copy_cols.
template <int step, class S>
void write_cols(const Acc<S>* from, int64_t pitch, const StridedMatrix<S>& to, const FusedEpilogue<Acc<S>>& fused) {
  constexpr int L = lanes<S>;
  const auto store_rows = [&](S* p, Vector<S> v, int count) __attribute__((always_inline)) {
    if constexpr (step == 2) {
      store_every_second(p, v, count);
    } else if (count == L) {
      store(p, v);
    } else {
      store(p, v, count);
    }
  };
  for (int64_t j = 0; j < to.cols; j += L)
    for (int64_t i = 0; i < to.rows; i += L) {
      const Acc<S>* block = from + i * pitch + j;
      S* target = to.data + i * step + j * to.col_stride;
      Vector<S> v[L];
      if (j + L <= to.cols && i + L <= to.rows) {
        unroll<L>([&](auto l) __attribute__((always_inline)) { v[l] = fused(load(block + l * pitch), j); });
        transpose(v);
        unroll<L>([&](auto l) __attribute__((always_inline)) { store_rows(target + l * to.col_stride, v[l], L); });
      } else {
        const int width = std::min<int64_t>(L, to.cols - j), height = std::min<int64_t>(L, to.rows - i);
        for (int l = 0; l < L; ++l) v[l] = l < height ? fused(load(block + l * pitch), j) : Vector<S>{};
        transpose(v);
        for (int l = 0; l < width; ++l) store_rows(target + l * to.col_stride, v[l], height);
      }
    }
}

// Stores fused(from[i * pitch + j]) to element (i, j) of a matrix; j is the lane of the epilogue. Reads whole vectors
// of `from`.
template <class S>
void write_tile(const Acc<S>* from, int64_t pitch, const StridedMatrix<S>& to,
                const FusedEpilogue<Acc<S>>& fused = FusedEpilogue<Acc<S>>()) {
  constexpr int L = lanes<S>;
  if (to.col_stride == 1) {
    write_rows(from, pitch, to, fused);
  } else if (to.row_stride == 1) {
    write_cols<1>(from, pitch, to, fused);
  } else {
    if constexpr (has_every_second<S>)
      if (to.row_stride == 2 && to.rows > 1) return write_cols<2>(from, pitch, to, fused);
    for (int64_t i = 0; i < to.rows; ++i)
      for (int64_t j = 0; j < to.cols; j += L) {
        const Vector<S> v = fused(load(from + i * pitch + j), j);
        for (int l = 0; l < std::min<int64_t>(L, to.cols - j); ++l)
          to.data[i * to.row_stride + (j + l) * to.col_stride] = S(v[l]);
      }
  }
}

// Every kernel uses these: one file per instruction set instantiates them (kernel_table.cpp).
#define TORCHCONV_TILE_COPIES(declares, S)                                                       \
  declares template void read_tile<S>(const StridedMatrix<const S>&, Acc<S>*, int64_t, int64_t); \
  declares template void write_tile<S>(const Acc<S>*, int64_t, const StridedMatrix<S>&, const FusedEpilogue<Acc<S>>&);
TORCHCONV_TILE_COPIES(extern, double)
TORCHCONV_TILE_COPIES(extern, float)
TORCHCONV_TILE_COPIES(extern, BFloat16)
TORCHCONV_TILE_COPIES(extern, Half)
