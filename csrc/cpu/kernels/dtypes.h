// From a dtype known at run time to a type.

inline Dtype dtype_of(double) { return Dtype::float64; }
inline Dtype dtype_of(float) { return Dtype::float32; }
inline Dtype dtype_of(BFloat16) { return Dtype::bfloat16; }
inline Dtype dtype_of(Half) { return Dtype::float16; }

// The dtypes that a kernel supports.
template <class... S>
struct TypeList {
  // Calls body(S()) for the S whose dtype is `dtype`; does nothing if there is none.
  template <class Body>
  static void with(Dtype dtype, const Body& body) {
    ((dtype == dtype_of(S()) ? body(S()) : void()), ...);
  }
};

using AllTypes = TypeList<double, float, BFloat16, Half>;
