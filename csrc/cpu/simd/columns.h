// From a kernel to a row of the grid.
//
// A kernel is a type with these functions, of which the templates are called with the dtype of the tensors:
//   fits<S>(parts)         can `correlate` do it?
//   fits_weight<S>(Conv)   can `grad_weight` do it?
//   suits(Conv, Op)        is it likely to be faster than the rows behind it?
//   does, is_for           the same in words
//   correlate, grad_weight

template <class Condition>
bool all_of(const Parts& parts, const Condition& condition) {
  for (const Part& part : parts)
    if (!condition(part.conv)) return false;
  return true;
}

inline Dtype dtype_of(double) { return Dtype::float64; }
inline Dtype dtype_of(float) { return Dtype::float32; }
inline Dtype dtype_of(BFloat16) { return Dtype::bfloat16; }
inline Dtype dtype_of(Half) { return Dtype::float16; }

// Beyond, the phases are hardly more than pixels, and a list of them costs more than the sums.
constexpr double most_phases = 4096;

// The functions of a row of the grid, for tensors of these types.
template <class Kernel, class... Types>
struct Columns {
  template <class Body>
  static void with_dtype(Dtype dtype, const Body& body) {
    ((dtype == dtype_of(Types()) ? body(Types()) : void()), ...);
  }

  static bool supports(const Conv& conv, Op op) {
    bool possible = false;
    with_dtype(conv.dtype, [&](auto t) {
      using S = decltype(t);
      if (conv.N == 0 || conv.C == 0 || conv.K == 0 || conv.rows.in == 0 || conv.cols.in == 0) return;
      if (op == Op::grad_input && grad_input_phases(conv) > most_phases) return;
      possible = op == Op::forward      ? Kernel::template fits<S>(forward_parts(conv))
                 : op == Op::grad_input ? Kernel::template fits<S>(grad_input_parts(conv))
                                        : Kernel::template fits_weight<S>(conv);
    });
    return possible;
  }

  static void forward(const Conv& conv, const void* x, const void* w, void* y, const Epilogue& epilogue) {
    with_dtype(conv.dtype, [&](auto t) {
      using S = decltype(t);
      Kernel::correlate(forward_parts(conv), static_cast<const S*>(x), static_cast<const S*>(w), static_cast<S*>(y),
                        epilogue);
    });
  }

  static void grad_input(const Conv& conv, const void* y, const void* w, void* x) {
    with_dtype(conv.dtype, [&](auto t) {
      using S = decltype(t);
      Kernel::correlate(grad_input_parts(conv), static_cast<const S*>(y), static_cast<const S*>(w), static_cast<S*>(x),
                        Epilogue());
    });
  }

  static void grad_weight(const Conv& conv, const void* x, const void* y, void* w) {
    with_dtype(conv.dtype, [&](auto t) {
      using S = decltype(t);
      Kernel::grad_weight(conv, static_cast<const S*>(x), static_cast<const S*>(y), static_cast<S*>(w));
    });
  }
};

// Rows are constants: no code of this instruction set may run before `available` has been asked.
template <class Kernel, class... Types>
constexpr Implementation row(const char* name) {
  using F = Columns<Kernel, Types...>;
  return {name,         Device::cpu,    available,  F::supports,   Kernel::suits,
          Kernel::does, Kernel::is_for, F::forward, F::grad_input, F::grad_weight};
}
