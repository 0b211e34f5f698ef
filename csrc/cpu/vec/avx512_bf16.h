// AVX512_BF16 on top of AVX-512: dot products of bf16 pairs, and conversion from float to bfloat16 in one instruction.
#include "avx512.h"

// Vectors of 16 bf16 pairs. fma accumulates, in each lane, the products of both elements of the pair.
INLINE __m512i broadcast(Bf16Pair pair) { return _mm512_set1_epi32(pair.bits); }
INLINE __m512i load(const Bf16Pair* p) { return _mm512_loadu_si512(p); }
INLINE __m512 fma(__m512i a, __m512i b, __m512 c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }

// Rounding to nearest by vcvtneps2bf16 instead of `narrow`.
INLINE void store(BFloat16* p, __m512 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
}
INLINE void store(BFloat16* p, __m512 v, int n) {
  _mm256_mask_storeu_epi16(p, first(n), (__m256i)_mm512_cvtneps_pbh(v));
}
INLINE void stream(BFloat16* p, __m512 v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
}

// Store two vectors that follow each other. A non-temporal store takes a multiple of 64 bytes as its address.
INLINE __m512i narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
INLINE void store(BFloat16* p, __m512 low, __m512 high) { _mm512_storeu_si512(p, narrow(low, high)); }
INLINE void stream(BFloat16* p, __m512 low, __m512 high) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), narrow(low, high));
}

// bfloat16 tensors are read in place.
template <>
inline constexpr bool reads_in_place<BFloat16> = true;

// Loads the pairs {low[i], high[i]} of the lanes i in `mask`; the other lanes are zero. If `high` is null, the second
// element of each pair is 0.
INLINE __m512i load_pairs(const BFloat16* low, const BFloat16* high, uint32_t mask = 0xffff) {
  const auto wide = [&](const BFloat16* p) __attribute__((always_inline)) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
  };
  return high ? _mm512_or_si512(wide(low), _mm512_slli_epi32(wide(high), 16)) : wide(low);
}
