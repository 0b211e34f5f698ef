// The vector interface (vec.h) for AVX-512 (F, BW, DQ, VL): 32 registers of 16 floats or 8 doubles.

template <>
struct Simd<float> {
  using V = __m512;
  static constexpr int lanes = 16;
};

template <>
struct Simd<double> {
  using V = __m512d;
  static constexpr int lanes = 8;
};

constexpr int registers = 32;

INLINE __m512 broadcast(float s) { return _mm512_set1_ps(s); }
INLINE __m512d broadcast(double s) { return _mm512_set1_pd(s); }

INLINE __m512 fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
INLINE __m512d fma(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }

// If either operand is NaN, the result is the second operand.
INLINE __m512 max(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
INLINE __m512d max(__m512d a, __m512d b) { return _mm512_max_pd(a, b); }
INLINE __m512 min(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
INLINE __m512d min(__m512d a, __m512d b) { return _mm512_min_pd(a, b); }

// Whether a >= b in any lane.
INLINE bool any_at_least(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ) != 0; }
INLINE bool any_at_least(__m512d a, __m512d b) { return _mm512_cmp_pd_mask(a, b, _CMP_GE_OQ) != 0; }

// Convert 16-bit elements to floats.
INLINE __m512 widen(__m256i bits, BFloat16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
INLINE __m512 widen(__m256i bits, Half) { return _mm512_cvtph_ps(bits); }

// Convert floats to 16-bit elements, rounding to nearest, ties to even; NaN stays NaN.
INLINE __m256i narrow(__m512 v, BFloat16) {
  const __m512i bits = _mm512_castps_si512(v), one = _mm512_set1_epi32(1);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(
      _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000)), 16));
}
INLINE __m256i narrow(__m512 v, Half) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// The mask of the first n lanes.
INLINE uint32_t first(int n) { return (1u << n) - 1; }

// Load and store a full vector. 16-bit elements are converted on the way.
INLINE __m512 load(const float* p) { return _mm512_loadu_ps(p); }
INLINE __m512d load(const double* p) { return _mm512_loadu_pd(p); }
template <class Short>
INLINE __m512 load(const Short* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), Short());
}

// Load the first n lanes; the other lanes are zero.
INLINE __m512 load(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
INLINE __m512d load(const double* p, int n) { return _mm512_maskz_loadu_pd(first(n), p); }
template <class Short>
INLINE __m512 load(const Short* p, int n) {
  return widen(_mm256_maskz_loadu_epi16(first(n), p), Short());
}

INLINE void store(float* p, __m512 v) { _mm512_storeu_ps(p, v); }
INLINE void store(double* p, __m512d v) { _mm512_storeu_pd(p, v); }
template <class Short>
INLINE void store(Short* p, __m512 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v, Short()));
}

// Store the first n lanes only.
INLINE void store(float* p, __m512 v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
INLINE void store(double* p, __m512d v, int n) { _mm512_mask_storeu_pd(p, first(n), v); }
template <class Short>
INLINE void store(Short* p, __m512 v, int n) {
  _mm256_mask_storeu_epi16(p, first(n), narrow(v, Short()));
}

// Load the elements 0, 2, 4, ... from p on into the first n lanes, or store those. No other element is read or written.
template <>
inline constexpr bool has_every_second<float> = true;

INLINE uint32_t every_second(int n) { return 0x55555555u & (n < 16 ? first(2 * n) : 0xffffffffu); }
INLINE __m512 load_every_second(const float* p, int n) {
  const uint32_t even = every_second(n);
  const __m512 low = _mm512_maskz_loadu_ps(even & 0xffff, p), high = _mm512_maskz_loadu_ps(even >> 16, p + 16);
  const __m512i index = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  return _mm512_permutex2var_ps(low, index, high);
}
INLINE void store_every_second(float* p, __m512 v, int n) {
  const uint32_t even = every_second(n);
  const __m512i low = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  const __m512i high = _mm512_set_epi32(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8);
  _mm512_mask_storeu_ps(p, even & 0xffff, _mm512_permutexvar_ps(low, v));
  if (n > 8) _mm512_mask_storeu_ps(p + 16, even >> 16, _mm512_permutexvar_ps(high, v));
}

// Lane i of the result is lane index[i] of v.
INLINE __m512 permute(__m512 v, const int32_t* index) { return _mm512_permutexvar_ps(_mm512_loadu_si512(index), v); }
INLINE __m512d permute(__m512d v, const int32_t* index) {
  const __m256i wide = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
  return _mm512_permutexvar_pd(_mm512_cvtepi32_epi64(wide), v);
}

// Non-temporal (streaming) stores. The address is a multiple of the vector size. Call finish_streams() before other
// threads may read the data.
INLINE void stream(float* p, __m512 v) { _mm512_stream_ps(p, v); }
INLINE void stream(double* p, __m512d v) { _mm512_stream_pd(p, v); }
INLINE void finish_streams() { _mm_sfence(); }
