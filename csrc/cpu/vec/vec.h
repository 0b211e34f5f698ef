// The vector interface that every instruction set implements: Simd<T>::V, a register of T, and functions on it
// (avx512.h, avx2.h, portable.h). This file has the parts common to all of them: accumulator types, bf16 pairs and
// unrolled loops. The files of this directory are included once per instruction set, inside its namespace and its
// target region.

#define INLINE inline __attribute__((always_inline))

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Specialized for float and double: V is the vector type, `lanes` its number of elements.
template <class T>
struct Simd;

// The accumulator type for tensors of S: double for float64, float for every other dtype.
template <class S>
using Acc = std::conditional_t<std::is_same_v<S, double>, double, float>;

// Whether kernels read tensors of S in place, rather than from a copy that is converted to Acc<S> once. An instruction
// set may specialize it for further dtypes.
template <class S>
constexpr bool reads_in_place = std::is_same_v<S, Acc<S>>;

// Two bfloat16 elements in one 32-bit word; one instruction multiplies and accumulates both (micro/bf16_pair.h). It is
// aligned like a single bfloat16, since a pair may start at any element of a tensor.
struct Bf16Pair {
  typedef uint32_t Bits __attribute__((aligned(2), may_alias));
  Bits bits;
};

// As the offset from the first element of a pair to the second: there is no second element, and it reads as 0.
constexpr int64_t no_second = std::numeric_limits<int64_t>::min();

// Values in one GEMM element E: 2 for a bf16 pair, else 1.
template <class E>
constexpr int values_per = std::is_same_v<E, Bf16Pair> ? 2 : 1;

// A vector of accumulators for tensors of S, and its number of lanes.
template <class S>
using Vector = typename Simd<Acc<S>>::V;

template <class S>
constexpr int lanes = Simd<Acc<S>>::lanes;

// Whether load_every_second and store_every_second exist for tensors of S, which access the elements 0, 2, 4, ... from
// an address on. An instruction set may specialize it.
template <class S>
constexpr bool has_every_second = false;

// unroll<n>(body) calls body(0), body(1), ..., body(n - 1); each argument is a compile-time constant.
template <class Body, int... i>
INLINE void unroll(const Body& body, std::integer_sequence<int, i...>) {
  (body(std::integral_constant<int, i>()), ...);
}

template <int n, class Body>
INLINE void unroll(const Body& body) {
  unroll(body, std::make_integer_sequence<int, n>());
}

// fold<n>(body) calls body(Indices<0, 1, ..., n - 1>()) once. A fold expression over the indices compiles in a fraction
// of the time that the n calls of unroll take.
template <int... i>
using Indices = std::integer_sequence<int, i...>;

template <int n, class Body>
INLINE void fold(const Body& body) {
  body(std::make_integer_sequence<int, n>());
}
