// The vector interface (vec.h) for AVX2 with FMA and F16C: 16 registers of 8 floats or 4 doubles.

template <>
struct Simd<float> {
  using V = __m256;
  static constexpr int lanes = 8;
};

template <>
struct Simd<double> {
  using V = __m256d;
  static constexpr int lanes = 4;
};

constexpr int registers = 16;

INLINE __m256 broadcast(float s) { return _mm256_set1_ps(s); }
INLINE __m256d broadcast(double s) { return _mm256_set1_pd(s); }

INLINE __m256 fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
INLINE __m256d fma(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }

// If either operand is NaN, the result is the second operand.
INLINE __m256 max(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
INLINE __m256d max(__m256d a, __m256d b) { return _mm256_max_pd(a, b); }
INLINE __m256 min(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
INLINE __m256d min(__m256d a, __m256d b) { return _mm256_min_pd(a, b); }

// Whether a >= b in any lane.
INLINE bool any_at_least(__m256 a, __m256 b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)) != 0; }
INLINE bool any_at_least(__m256d a, __m256d b) { return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GE_OQ)) != 0; }

// Convert 16-bit elements to floats.
INLINE __m256 widen(__m128i bits, BFloat16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
INLINE __m256 widen(__m128i bits, Half) { return _mm256_cvtph_ps(bits); }

// Convert floats to 16-bit elements, rounding to nearest, ties to even; NaN stays NaN.
INLINE __m128i narrow(__m256 v, BFloat16) {
  const __m256i bits = _mm256_castps_si256(v), one = _mm256_set1_epi32(1);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
INLINE __m128i narrow(__m256 v, Half) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// The mask of the first n lanes, of 32-bit and of 64-bit elements.
INLINE __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE __m256i first_wide(int n) { return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)); }

// Load and store a full vector. 16-bit elements are converted on the way.
INLINE __m256 load(const float* p) { return _mm256_loadu_ps(p); }
INLINE __m256d load(const double* p) { return _mm256_loadu_pd(p); }
template <class Short>
INLINE __m256 load(const Short* p) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), Short());
}

// Load the first n lanes; the other lanes are zero.
INLINE __m256 load(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
INLINE __m256d load(const double* p, int n) { return _mm256_maskload_pd(p, first_wide(n)); }
template <class Short>
INLINE __m256 load(const Short* p, int n) {
  Short all[8] = {};
  std::memcpy(static_cast<void*>(all), p, n * sizeof(Short));
  return load(all);
}

INLINE void store(float* p, __m256 v) { _mm256_storeu_ps(p, v); }
INLINE void store(double* p, __m256d v) { _mm256_storeu_pd(p, v); }
template <class Short>
INLINE void store(Short* p, __m256 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v, Short()));
}

// Store the first n lanes only.
INLINE void store(float* p, __m256 v, int n) { _mm256_maskstore_ps(p, first(n), v); }
INLINE void store(double* p, __m256d v, int n) { _mm256_maskstore_pd(p, first_wide(n), v); }
template <class Short>
INLINE void store(Short* p, __m256 v, int n) {
  Short all[8];
  store(all, v);
  std::memcpy(static_cast<void*>(p), all, n * sizeof(Short));
}

// Lane i of the result is lane index[i] of v.
INLINE __m256 permute(__m256 v, const int32_t* index) {
  return _mm256_permutevar8x32_ps(v, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)));
}
INLINE __m256d permute(__m256d v, const int32_t* index) {
  return __m256d{v[index[0]], v[index[1]], v[index[2]], v[index[3]]};
}

// Non-temporal (streaming) stores. The address is a multiple of the vector size. Call finish_streams() before other
// threads may read the data.
INLINE void stream(float* p, __m256 v) { _mm256_stream_ps(p, v); }
INLINE void stream(double* p, __m256d v) { _mm256_stream_pd(p, v); }
INLINE void finish_streams() { _mm_sfence(); }
