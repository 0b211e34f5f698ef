// Reads bfloat16 tensors as bf16 pairs (VNNI layout), for the GEMM kernels of AVX512_BF16. A pair holds two
// neighbouring channels or, in grad_weight, the same pixel of two images, so that a reduction takes half as many steps.

// to[i * pitch + j] = {from[i * row + j * lane], from[high + i * row + j * lane]} for i < rows, j < count. If `high` is
// no_second, the second element of each pair is 0.
inline void read_elements(const BFloat16* from, int64_t high, int64_t row, int64_t lane, int64_t rows, int64_t count,
                          Bf16Pair* to, int64_t pitch) {
  constexpr int L = 16;
  // Whether pairs that are `step` elements apart can be loaded as vectors: their first elements are contiguous, or the
  // pairs themselves are.
  const auto in_line = [&](int64_t step) { return step == 1 || (step == 2 && high == 1); };
  // Loads n such pairs.
  const auto get = [&](const BFloat16* p, int64_t step, int n) __attribute__((always_inline)) {
    if (step == 1) return load_pairs(p, high != no_second ? p + high : nullptr, first(n));
    return _mm512_maskz_loadu_epi32(first(n), p);
  };
  if (in_line(lane)) {
    for (int64_t i = 0; i < rows; ++i, from += row, to += pitch)
      for (int64_t j = 0; j < count; j += L) {
        const int n = std::min<int64_t>(L, count - j);
        _mm512_mask_storeu_epi32(to + j, first(n), get(from + j * lane, lane, n));
      }
  } else if (in_line(row)) {
    for (int64_t j = 0; j < count; j += L)
      for (int64_t i = 0; i < rows; i += L) {
        const int width = std::min<int64_t>(L, count - j), height = std::min<int64_t>(L, rows - i);
        __m512 v[L];
        unroll<L>([&](auto l) __attribute__((always_inline)) {
          v[l] = l < width ? _mm512_castsi512_ps(get(from + i * row + (j + l) * lane, row, height)) : __m512{};
        });
        transpose(v);
        unroll<L>([&](auto l) __attribute__((always_inline)) {
          if (l < height) _mm512_mask_storeu_ps(to + (i + l) * pitch + j, first(width), v[l]);
        });
      }
  } else {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < count; ++j) {
        const BFloat16* at = from + i * row + j * lane;
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

// to[i * pitch + j] = {element 2 j, element 2 j + 1} of row i, where element e of row i is from[i * row + e * lane] and
// a row has `count` elements. If `count` is odd, the last element is paired with 0.
inline void read_tile(const BFloat16* from, int64_t row, int64_t lane, int64_t rows, int64_t count, Bf16Pair* to,
                      int64_t pitch, int64_t = 0) {
  if (lane == 1 && row == count && pitch == (count + 1) / 2) {
    if (count % 2 == 0) return read_elements(from, 1, 0, 2, 1, rows * count / 2, to, pitch);
    if (count < 16) return read_odd_pixels(from, rows, count, to);
  }
  read_elements(from, lane, row, 2 * lane, rows, count / 2, to, pitch);
  if (count % 2) read_elements(from + (count - 1) * lane, no_second, row, lane, rows, 1, to + count / 2, pitch);
}
