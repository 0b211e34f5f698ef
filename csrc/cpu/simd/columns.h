// From a kernel to a row of the grid.
//
// A kernel is a type with these members, of which the templates are called with the dtype of the tensors:
//   name                   of the row, after that of the instruction set
//   Types                  the dtypes
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

// Dtypes that a kernel does.
template <class... S>
struct TypeList {
  // body(S()) for the one that is `dtype`.
  template <class Body>
  static void with(Dtype dtype, const Body& body) {
    ((dtype == dtype_of(S()) ? body(S()) : void()), ...);
  }
};

using AllTypes = TypeList<double, float, BFloat16, Half>;

// The columns of a row: run.h.
template <class Kernel>
struct Correlate {
  static void forward(const Conv& conv, const void* x, const void* w, void* y, const Epilogue& epilogue);
  static void grad_input(const Conv& conv, const void* y, const void* w, void* x);
};

template <class Kernel>
struct GradWeight {
  static void grad_weight(const Conv& conv, const void* x, const void* y, void* w);
};

// Beyond, the phases are hardly more than pixels, and a list of them costs more than the sums.
constexpr double most_phases = 4096;

template <class Kernel>
bool supports(const Conv& conv, Op op) {
  bool possible = false;
  Kernel::Types::with(conv.dtype, [&](auto t) {
    using S = decltype(t);
    if (conv.N == 0 || conv.C == 0 || conv.K == 0 || conv.rows.in == 0 || conv.cols.in == 0) return;
    if (op == Op::grad_input && grad_input_phases(conv) > most_phases) return;
    possible = op == Op::forward      ? Kernel::template fits<S>(forward_parts(conv))
               : op == Op::grad_input ? Kernel::template fits<S>(grad_input_parts(conv))
                                      : Kernel::template fits_weight<S>(conv);
  });
  return possible;
}

template <class Kernel>
constexpr Implementation row() {
  return {Kernel::name,
          Device::cpu,
          available,
          supports<Kernel>,
          Kernel::suits,
          Kernel::does,
          Kernel::is_for,
          Correlate<Kernel>::forward,
          Correlate<Kernel>::grad_input,
          GradWeight<Kernel>::grad_weight};
}

#define TORCHCONV_STRING(text) TORCHCONV_STRING_OF(text)
#define TORCHCONV_STRING_OF(text) #text
#define TORCHCONV_ROW_NAME(kernel) "cpu." TORCHCONV_STRING(TORCHCONV_ISA) "." kernel
