// The vector interface (vec.h) for any machine: 16-byte vectors in the compiler's own vector types, which it maps to
// the registers of the machine.

template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(16)));
  static constexpr int lanes = 4;
};

template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(16)));
  static constexpr int lanes = 2;
};

constexpr int registers = 16;

using V4 = Simd<float>::V;
using V2 = Simd<double>::V;

INLINE V4 broadcast(float s) { return V4{s, s, s, s}; }
INLINE V2 broadcast(double s) { return V2{s, s}; }

INLINE V4 fma(V4 a, V4 b, V4 c) { return a * b + c; }
INLINE V2 fma(V2 a, V2 b, V2 c) { return a * b + c; }

// If either operand is NaN, the result is the second operand.
INLINE V4 max(V4 a, V4 b) { return a > b ? a : b; }
INLINE V2 max(V2 a, V2 b) { return a > b ? a : b; }
INLINE V4 min(V4 a, V4 b) { return a < b ? a : b; }
INLINE V2 min(V2 a, V2 b) { return a < b ? a : b; }

// Whether a >= b in any lane.
INLINE bool any_at_least(V4 a, V4 b) { return a[0] >= b[0] || a[1] >= b[1] || a[2] >= b[2] || a[3] >= b[3]; }
INLINE bool any_at_least(V2 a, V2 b) { return a[0] >= b[0] || a[1] >= b[1]; }

// Loads the first n lanes; the other lanes are zero.
template <class S>
INLINE Vector<S> load(const S* p, int n) {
  Vector<S> v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

// Stores the first n lanes only.
template <class S>
INLINE void store(S* p, Vector<S> v, int n) {
  for (int i = 0; i < n; ++i) p[i] = S(v[i]);
}

// Load and store a full vector.
template <class S>
INLINE Vector<S> load(const S* p) {
  return load(p, lanes<S>);
}

template <class S>
INLINE void store(S* p, Vector<S> v) {
  store(p, v, lanes<S>);
}

// Lane i of the result is lane index[i] of v.
INLINE V4 permute(V4 v, const int32_t* index) { return V4{v[index[0]], v[index[1]], v[index[2]], v[index[3]]}; }
INLINE V2 permute(V2 v, const int32_t* index) { return V2{v[index[0]], v[index[1]]}; }

// Plain stores, since non-temporal (streaming) stores have no portable form. The interface is the same as elsewhere:
// the address is a multiple of the vector size, and finish_streams() is called before other threads may read the data.
INLINE void stream(float* p, V4 v) { store(p, v); }
INLINE void stream(double* p, V2 v) { store(p, v); }
INLINE void finish_streams() {}
