// Reads bfloat16 tensors as bf16 pairs (VNNI layout), for the GEMM kernels of AVX512_BF16. A pair holds two
// neighbouring channels or, in grad_weight, the same pixel of two images, so that a reduction takes half as many steps.

// Copies a matrix of pairs to to[i * pitch + j]. Element (i, j) of `from` is the first element of a pair, and the
// second one lies `high` elements further on. If `high` is no_second, the second element of each pair is 0.
template <class S>
void read_elements(const StridedMatrix<const S>& from, int64_t high, Bf16Pair* to, int64_t pitch) {
  constexpr int L = 16;
  const int64_t rows = from.rows, cols = from.cols, row_stride = from.row_stride, col_stride = from.col_stride;
  // Whether pairs that are `stride` elements apart can be loaded as vectors: their first elements are contiguous, or
  // the pairs themselves are.
  const auto in_line = [&](int64_t stride) { return stride == 1 || (stride == 2 && high == 1); };
  // Loads n such pairs.
  const auto get = [&](const S* p, int64_t stride, int n) __attribute__((always_inline)) {
    if (stride == 1) return load_pairs(p, high != no_second ? p + high : nullptr, first(n));
    return _mm512_maskz_loadu_epi32(first(n), p);
  };
  if (in_line(col_stride)) {
    const S* row = from.data;
    for (int64_t i = 0; i < rows; ++i, row += row_stride, to += pitch)
      for (int64_t j = 0; j < cols; j += L) {
        const int n = std::min<int64_t>(L, cols - j);
        _mm512_mask_storeu_epi32(to + j, first(n), get(row + j * col_stride, col_stride, n));
      }
  } else if (in_line(row_stride)) {
    for (int64_t j = 0; j < cols; j += L)
      for (int64_t i = 0; i < rows; i += L) {
        const int width = std::min<int64_t>(L, cols - j), height = std::min<int64_t>(L, rows - i);
        const S* block = from.data + i * row_stride + j * col_stride;
        __m512 v[L];
        unroll<L>([&](auto l) __attribute__((always_inline)) {
          v[l] = l < width ? _mm512_castsi512_ps(get(block + l * col_stride, row_stride, height)) : __m512{};
        });
        transpose(v);
        unroll<L>([&](auto l) __attribute__((always_inline)) {
          if (l < height) _mm512_mask_storeu_ps(to + (i + l) * pitch + j, first(width), v[l]);
        });
      }
  } else {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols; ++j) {
        const S* at = from.data + i * row_stride + j * col_stride;
        to[i * pitch + j].bits = at->x | (high != no_second ? uint32_t(at[high].x) << 16 : 0);
      }
  }
}

// read_tile for contiguous rows (pixels) with an odd `count` of channels, below 16. Source and destination are
// contiguous; one permutation makes the pairs of as many whole pixels as fit into 32 elements.
inline void read_odd_pixels(const BFloat16* from, int64_t rows, int64_t count, Bf16Pair* to) {
  const int64_t padded = count + 1, at_once = 32 / padded;
  alignas(64) int16_t index[32];
  for (int i = 0; i < 32; ++i) index[i] = i / padded * count + i % padded;
  uint32_t exists = 0;
  for (int64_t i = 0; i < at_once * padded; ++i) exists |= uint32_t(i % padded < count) << i;
  const __m512i order = _mm512_load_si512(index);
  for (int64_t i = 0; i < rows; i += at_once, from += at_once * count, to += at_once * padded / 2) {
    const int64_t now = std::min(at_once, rows - i);
    const __m512i numbers = _mm512_maskz_loadu_epi16((uint64_t(1) << now * count) - 1, from);
    const __m512i pairs = _mm512_maskz_permutexvar_epi16(exists, order, numbers);
    _mm512_mask_storeu_epi32(to, (1u << now * padded / 2) - 1, pairs);
  }
}

// Copies a matrix to to[i * pitch + j] as pairs of neighbouring elements of a row. If a row has an odd number of
// elements, the last one is paired with 0.
inline void read_tile(const StridedMatrix<const BFloat16>& from, Bf16Pair* to, int64_t pitch, int64_t = 0) {
  const auto [data, rows, cols, row_stride, col_stride] = from;
  const int64_t pairs = cols / 2;
  if (col_stride == 1 && row_stride == cols && pitch == ceil_div(cols, 2)) {  // one long row
    if (cols % 2 == 0) return read_elements<BFloat16>({data, 1, rows * pairs, 0, 2}, 1, to, pitch);
    if (cols < 16) return read_odd_pixels(data, rows, cols, to);
  }
  read_elements<BFloat16>({data, rows, pairs, row_stride, 2 * col_stride}, col_stride, to, pitch);
  if (cols % 2)
    read_elements<BFloat16>({data + (cols - 1) * col_stride, rows, 1, row_stride, col_stride}, no_second, to + pairs,
                            pitch);
}
