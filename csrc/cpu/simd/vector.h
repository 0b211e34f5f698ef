// What every instruction set offers: Simd<T>::V, a register of T, and functions on it (avx512.h, avx2.h, portable.h).
// The files of this directory are included once per instruction set, inside its namespace and its target region.

#define INLINE inline __attribute__((always_inline))

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <class T>
struct Simd;

// Sums are kept in double for float64, and in float for everything else.
template <class S>
using Sum = std::conditional_t<std::is_same_v<S, double>, double, float>;

// Whether tensors of S are read in place, and not by way of a copy that is converted once. An instruction set may add
// to these.
template <class S>
constexpr bool reads_fast = std::is_same_v<S, Sum<S>>;

// Two bfloat16 numbers that are multiplied and added up together (pairs.h); anywhere in memory where numbers may lie.
struct Pair {
  typedef uint32_t Bits __attribute__((aligned(2), may_alias));
  Bits bits;
};

constexpr int64_t alone = std::numeric_limits<int64_t>::min();  // where a second number would be, if there is none

// Numbers in an element of a product.
template <class E>
constexpr int numbers = std::is_same_v<E, Pair> ? 2 : 1;

template <class S>
using Vector = typename Simd<Sum<S>>::V;

template <class S>
constexpr int lanes = Simd<Sum<S>>::lanes;

// body(0), body(1), ... body(n - 1), with the numbers as constants.
template <class Body, int... i>
INLINE void unroll(const Body& body, std::integer_sequence<int, i...>) {
  (body(std::integral_constant<int, i>()), ...);
}

template <int n, class Body>
INLINE void unroll(const Body& body) {
  unroll(body, std::make_integer_sequence<int, n>());
}

// body(Numbers<0, 1, ... n - 1>()): a fold over them takes the compiler a fraction of what n calls take.
template <int... i>
using Numbers = std::integer_sequence<int, i...>;

template <int n, class Body>
INLINE void fold(const Body& body) {
  body(std::make_integer_sequence<int, n>());
}
