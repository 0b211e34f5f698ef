// AVX-512 and AVX512_BF16 on machines that have only AVX2: the intrinsics that csrc/cpu uses, as functions that hide
// them. If TORCHCONV_EMULATION names this file, targets/target_region.h includes it in the namespace of each x86
// instruction set. The kernels run unchanged and give the same bits, in several times the time.

typedef uint16_t EmulatedShorts __attribute__((vector_size(64), may_alias));
typedef uint32_t EmulatedWords __attribute__((vector_size(64), may_alias));

// Loops over lanes, which would take the compiler minutes in unrolled kernels.
#define OUT_OF_LINE inline __attribute__((noinline))

template <class To, class From>
INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class Half>
struct Halves {
  Half low, high;
};

// f(lower halves), f(upper halves), as one vector.
template <class Half, class F, class Whole, class... Wholes>
INLINE Whole by_halves(F f, Whole v, Wholes... rest) {
  return bits_as<Whole>(Halves<Half>{f(bits_as<Halves<Half>>(v).low, bits_as<Halves<Half>>(rest).low...),
                                     f(bits_as<Halves<Half>>(v).high, bits_as<Halves<Half>>(rest).high...)});
}

// Memory outside of the mask is neither read nor written.
template <class Element, class Vector>
OUT_OF_LINE Vector load_lanes(uint64_t mask, const void* from) {
  Element lanes[sizeof(Vector) / sizeof(Element)] = {};
  for (size_t i = 0; i < std::size(lanes); ++i)
    if (mask >> i & 1) std::memcpy(&lanes[i], static_cast<const char*>(from) + i * sizeof(Element), sizeof(Element));
  return bits_as<Vector>(lanes);
}

template <class Element, class Vector>
OUT_OF_LINE void store_lanes(void* to, uint64_t mask, Vector v) {
  Element lanes[sizeof(Vector) / sizeof(Element)];
  std::memcpy(lanes, &v, sizeof v);
  for (size_t i = 0; i < std::size(lanes); ++i)
    if (mask >> i & 1) std::memcpy(static_cast<char*>(to) + i * sizeof(Element), &lanes[i], sizeof(Element));
}

template <class Vector>
INLINE Vector load_vector(const void* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

INLINE __m512 _mm512_set1_ps(float s) { return bits_as<__m512>(Halves<__m256>{_mm256_set1_ps(s), _mm256_set1_ps(s)}); }
INLINE __m512d _mm512_set1_pd(double s) {
  return bits_as<__m512d>(Halves<__m256d>{_mm256_set1_pd(s), _mm256_set1_pd(s)});
}
INLINE __m512i _mm512_set1_epi32(int s) {
  return bits_as<__m512i>(Halves<__m256i>{_mm256_set1_epi32(s), _mm256_set1_epi32(s)});
}
INLINE __m512 _mm512_castsi512_ps(__m512i v) { return (__m512)v; }
INLINE __m512i _mm512_castps_si512(__m512 v) { return (__m512i)v; }

INLINE __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return by_halves<__m256>(
      [](__m256 x, __m256 y, __m256 z) __attribute__((always_inline)) { return _mm256_fmadd_ps(x, y, z); }, a, b, c);
}
INLINE __m512d _mm512_fmadd_pd(__m512d a, __m512d b, __m512d c) {
  return by_halves<__m256d>(
      [](__m256d x, __m256d y, __m256d z) __attribute__((always_inline)) { return _mm256_fmadd_pd(x, y, z); }, a, b, c);
}
INLINE __m512 _mm512_max_ps(__m512 a, __m512 b) {
  return by_halves<__m256>([](__m256 x, __m256 y) __attribute__((always_inline)) { return _mm256_max_ps(x, y); }, a, b);
}
INLINE __m512d _mm512_max_pd(__m512d a, __m512d b) {
  return by_halves<__m256d>([](__m256d x, __m256d y) __attribute__((always_inline)) { return _mm256_max_pd(x, y); }, a,
                            b);
}
INLINE __m512 _mm512_min_ps(__m512 a, __m512 b) {
  return by_halves<__m256>([](__m256 x, __m256 y) __attribute__((always_inline)) { return _mm256_min_ps(x, y); }, a, b);
}
INLINE __m512d _mm512_min_pd(__m512d a, __m512d b) {
  return by_halves<__m256d>([](__m256d x, __m256d y) __attribute__((always_inline)) { return _mm256_min_pd(x, y); }, a,
                            b);
}

INLINE __m512i _mm512_add_epi32(__m512i a, __m512i b) { return (__m512i)((EmulatedWords)a + (EmulatedWords)b); }
INLINE __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
INLINE __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }
INLINE __m512i _mm512_slli_epi32(__m512i v, int bits) { return (__m512i)((EmulatedWords)v << bits); }
INLINE __m512i _mm512_srli_epi32(__m512i v, int bits) { return (__m512i)((EmulatedWords)v >> bits); }
template <int predicate>
INLINE __mmask16 emulated_compare(__m512 a, __m512 b) {
  const auto halves = bits_as<Halves<__m256>>(a), others = bits_as<Halves<__m256>>(b);
  return __mmask16(_mm256_movemask_ps(_mm256_cmp_ps(halves.low, others.low, predicate)) |
                   _mm256_movemask_ps(_mm256_cmp_ps(halves.high, others.high, predicate)) << 8);
}
template <int predicate>
INLINE __mmask8 emulated_compare(__m512d a, __m512d b) {
  const auto halves = bits_as<Halves<__m256d>>(a), others = bits_as<Halves<__m256d>>(b);
  return __mmask8(_mm256_movemask_pd(_mm256_cmp_pd(halves.low, others.low, predicate)) |
                  _mm256_movemask_pd(_mm256_cmp_pd(halves.high, others.high, predicate)) << 4);
}
OUT_OF_LINE __m512i _mm512_mask_mov_epi32(__m512i otherwise, __mmask16 mask, __m512i v) {
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) ((EmulatedWords&)otherwise)[i] = ((EmulatedWords)v)[i];
  return otherwise;
}

// Conversions.
INLINE __m512i _mm512_cvtepu16_epi32(__m256i v) {
  return bits_as<__m512i>(Halves<__m256i>{_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)),
                                          _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1))});
}
OUT_OF_LINE __m256i _mm512_cvtepi32_epi16(__m512i v) {
  uint16_t lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = uint16_t(((EmulatedWords)v)[i]);
  return bits_as<__m256i>(lanes);
}
INLINE __m512i _mm512_cvtepi32_epi64(__m256i v) {
  return bits_as<__m512i>(Halves<__m256i>{_mm256_cvtepi32_epi64(_mm256_castsi256_si128(v)),
                                          _mm256_cvtepi32_epi64(_mm256_extracti128_si256(v, 1))});
}
INLINE __m512 emulated_from_half(__m256i v) {
  return bits_as<__m512>(
      Halves<__m256>{_mm256_cvtph_ps(_mm256_castsi256_si128(v)), _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1))});
}
INLINE __m256i emulated_to_half(__m512 v) {
  const auto halves = bits_as<Halves<__m256>>(v);
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return _mm256_set_m128i(_mm256_cvtps_ph(halves.high, nearest), _mm256_cvtps_ph(halves.low, nearest));
}

// Loads, stores and permutations.
INLINE __m512 _mm512_loadu_ps(const void* p) { return load_vector<__m512>(p); }
INLINE __m512d _mm512_loadu_pd(const void* p) { return load_vector<__m512d>(p); }
INLINE __m512i _mm512_loadu_si512(const void* p) { return load_vector<__m512i>(p); }
INLINE __m512i _mm512_load_si512(const void* p) { return load_vector<__m512i>(p); }
INLINE __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* p) { return load_lanes<uint32_t, __m512>(mask, p); }
INLINE __m512d _mm512_maskz_loadu_pd(__mmask8 mask, const void* p) { return load_lanes<uint64_t, __m512d>(mask, p); }
INLINE __m512i _mm512_maskz_loadu_epi32(__mmask16 mask, const void* p) {
  return load_lanes<uint32_t, __m512i>(mask, p);
}
INLINE __m512i _mm512_maskz_loadu_epi16(__mmask32 mask, const void* p) {
  return load_lanes<uint16_t, __m512i>(mask, p);
}
INLINE __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* p) {
  return load_lanes<uint16_t, __m256i>(mask, p);
}
INLINE void _mm512_storeu_ps(void* p, __m512 v) { std::memcpy(p, &v, sizeof v); }
INLINE void _mm512_storeu_pd(void* p, __m512d v) { std::memcpy(p, &v, sizeof v); }
INLINE void _mm512_storeu_si512(void* p, __m512i v) { std::memcpy(p, &v, sizeof v); }
INLINE void _mm512_stream_si512(__m512i* p, __m512i v) { *p = v; }
INLINE void _mm512_stream_ps(void* p, __m512 v) { *static_cast<__m512*>(p) = v; }
INLINE void _mm512_stream_pd(void* p, __m512d v) { *static_cast<__m512d*>(p) = v; }
INLINE void _mm512_mask_storeu_ps(void* p, __mmask16 mask, __m512 v) { store_lanes<uint32_t>(p, mask, v); }
INLINE void _mm512_mask_storeu_pd(void* p, __mmask8 mask, __m512d v) { store_lanes<uint64_t>(p, mask, v); }
INLINE void _mm512_mask_storeu_epi32(void* p, __mmask16 mask, __m512i v) { store_lanes<uint32_t>(p, mask, v); }
INLINE void _mm256_mask_storeu_epi16(void* p, __mmask16 mask, __m256i v) { store_lanes<uint16_t>(p, mask, v); }

OUT_OF_LINE __m512 _mm512_permutexvar_ps(__m512i index, __m512 v) {
  __m512 to;
  for (int i = 0; i < 16; ++i) to[i] = v[((EmulatedWords)index)[i] % 16];
  return to;
}
OUT_OF_LINE __m512 _mm512_permutex2var_ps(__m512 a, __m512i index, __m512 b) {
  __m512 to;
  for (int i = 0; i < 16; ++i) {
    const uint32_t from = ((EmulatedWords)index)[i] % 32;
    to[i] = from < 16 ? a[from] : b[from - 16];
  }
  return to;
}
template <class... Lane>
INLINE __m512i _mm512_set_epi32(Lane... lanes) {
  static_assert(sizeof...(lanes) == 16);
  const int all[] = {lanes...};  // the last lane first
  EmulatedWords to;
  for (int i = 0; i < 16; ++i) to[i] = all[15 - i];
  return (__m512i)to;
}
OUT_OF_LINE __m512d _mm512_permutexvar_pd(__m512i index, __m512d v) {
  __m512d to;
  for (int i = 0; i < 8; ++i) to[i] = v[uint64_t(index[i]) % 8];
  return to;
}
OUT_OF_LINE __m512i _mm512_maskz_permutexvar_epi16(__mmask32 mask, __m512i index, __m512i v) {
  EmulatedShorts to{};
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) to[i] = ((EmulatedShorts)v)[((EmulatedShorts)index)[i] % 32];
  return (__m512i)to;
}

// AVX512_BF16. The product of the second elements is accumulated first, each step fused.
INLINE __m512 _mm512_dpbf16_ps(__m512 c, __m512bh a, __m512bh b) {
  const __m512i second = _mm512_set1_epi32(int(0xffff0000)), x = (__m512i)a, y = (__m512i)b;
  c = _mm512_fmadd_ps((__m512)(x & second), (__m512)(y & second), c);
  return _mm512_fmadd_ps((__m512)_mm512_slli_epi32(x, 16), (__m512)_mm512_slli_epi32(y, 16), c);
}
OUT_OF_LINE __m256i emulated_to_bfloat16(__m512 v) {
  const __m512i bits = (__m512i)v, odd = _mm512_srli_epi32(bits, 16) & _mm512_set1_epi32(1);
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd));
  const __m512i selected =
      _mm512_mask_mov_epi32(rounded, emulated_compare<_CMP_UNORD_Q>(v, v), _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(selected, 16));
}

// Intrinsics that some compilers define as macros, and one whose return type C++ cannot cast from everywhere.
#undef _mm512_cmp_ps_mask
#undef _mm512_cmp_pd_mask
#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#undef _mm512_cvtneps_pbh
#undef _mm512_cvtne2ps_pbh
#define _mm512_cmp_ps_mask(a, b, predicate) emulated_compare<predicate>(a, b)
#define _mm512_cmp_pd_mask(a, b, predicate) emulated_compare<predicate>(a, b)
#define _mm512_cvtph_ps(v) emulated_from_half(v)
#define _mm512_cvtps_ph(v, rounding) emulated_to_half(v)
#define _mm512_cvtneps_pbh(v) emulated_to_bfloat16(v)
#define _mm512_cvtne2ps_pbh(high, low) \
  bits_as<__m512i>(Halves<__m256i>{emulated_to_bfloat16(low), emulated_to_bfloat16(high)})

#if defined(TORCHCONV_AMX)
#include "amx.h"
#endif
