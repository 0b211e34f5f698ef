// Which kernel computes which problem: the list of kernels, and the implementations (rows of the grid, registry.h) that
// they make.
//
// A kernel is a type with these members. S is the dtype of the tensors:
//   name                   the name of the implementation, after that of the instruction set
//   Types                  the dtypes it supports, a TypeList
//   fits<S>(parts)         whether `correlate` supports the problem
//   fits_weight<S>(Conv)   whether `grad_weight` supports it
//   suits(Conv, Op)        whether it is likely to be faster than the implementations after it
//   does, is_for           the same two checks in words
//   correlate<S>           forward and grad_input
//   grad_weight<S>

// Whether `condition` holds for the correlations of all parts.
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

// The operators of an implementation, defined in run.h.
template <class Kernel>
struct Correlate {
  static void forward(const Conv& conv, const void* x, const void* w, void* y, const Epilogue& epilogue);
  static void grad_input(const Conv& conv, const void* y, const void* w, void* x);
};

template <class Kernel>
struct GradWeight {
  static void grad_weight(const Conv& conv, const void* x, const void* y, void* w);
};

// Maximum number of phases of grad_input. With more, a phase has hardly more than a pixel, and listing the phases takes
// longer than computing them.
constexpr double max_phases = 4096;

// Implementation::supports: whether the kernel supports this operator for the problem. Empty problems are left to the
// reference.
template <class Kernel>
bool supports(const Conv& conv, Op op) {
  bool possible = false;
  Kernel::Types::with(conv.dtype, [&](auto t) {
    using S = decltype(t);
    if (conv.N == 0 || conv.C == 0 || conv.K == 0 || conv.rows.in == 0 || conv.cols.in == 0) return;
    if (op == Op::grad_input && grad_input_phases(conv) > max_phases) return;
    possible = op == Op::forward      ? Kernel::template fits<S>(forward_parts(conv))
               : op == Op::grad_input ? Kernel::template fits<S>(grad_input_parts(conv))
                                      : Kernel::template fits_weight<S>(conv);
  });
  return possible;
}

template <class Kernel>
constexpr Implementation implementation() {
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
#define TORCHCONV_IMPLEMENTATION_NAME(kernel) "cpu." TORCHCONV_STRING(TORCHCONV_ISA) "." kernel

// --- The kernels of every instruction set --------------------------------------------------------------------------

// gemm, for any geometry. E<S> is the type of its GEMM elements: accumulators, or bf16 pairs.
template <template <class S> class E>
struct Gemm {
  static constexpr const char* name = TORCHCONV_IMPLEMENTATION_NAME("gemm");
  using Types = AllTypes;
  static constexpr const char* does = "problems whose packed weights and accumulators fit into its working memory";
  static constexpr const char* is_for = "everything";

  template <class S>
  static bool fits(const Parts& parts) {
    return all_of(parts, [](const Correlation& conv) { return gemm::plan<E<S>, S>(conv).possible; });
  }
  template <class S>
  static bool fits_weight(const Conv& conv) {
    return gemm::weight_plan<E<S>, S>(conv).possible;
  }
  static bool suits(const Conv&, Op) { return true; }

  template <class S>
  static void correlate(const Parts& parts, const S* x, const S* w, S* y, const Epilogue& epilogue) {
    for (const Part& part : parts) gemm::correlate<E<S>>(part.conv, x, w + part.w_offset, y + part.y_offset, epilogue);
  }
  template <class S>
  static void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
    gemm::grad_weight<E<S>>(conv, x, y, w);
  }
};

// winograd, for 3x3 kernels of stride 1.
struct Winograd {
  static constexpr const char* name = TORCHCONV_IMPLEMENTATION_NAME("winograd");
  using Types = AllTypes;
  static constexpr const char* does =
      "3x3 kernels of stride 1, with dilations below 2^20 (in grad_weight none), of at most 4096 channels a group";
  static constexpr const char* is_for =
      "32 channels and more (16 in each of several groups) and outputs of 4x4 and more";

  static bool fits(const Conv& conv) {
    return conv.rows.kernel == 3 && conv.cols.kernel == 3 && conv.rows.stride == 1 && conv.cols.stride == 1 &&
           conv.rows.dilation < 1 << 20 && conv.cols.dilation < 1 << 20 && conv.C_per_group() <= 4096 &&
           conv.K_per_group() <= 4096;
  }
  template <class S>
  static bool fits(const Parts& parts) {
    constexpr double bias_bytes = 8 << 20;  // packed bias of all groups
    return all_of(parts, [](const Correlation& conv) {
      return fits(conv) && double(conv.groups) * (conv.K_per_group() + 2 * lanes<S>)*sizeof(Acc<S>) <= bias_bytes;
    });
  }
  template <class S>
  static bool fits_weight(const Conv& conv) {
    return fits(conv) && conv.rows.dilation == 1 && conv.cols.dilation == 1;
  }
  // Pays off with 32 or more channels: with fewer, the transforms cost more than the products that they save. With
  // several groups, winograd gains less, but the other kernels lose more, and 16 channels are enough.
  static bool suits(const Conv& conv, Op) {
    const int64_t least = conv.groups == 1 ? 32 : 16;
    const auto is_long = [](const Axis& axis) { return axis.out / axis.dilation >= 4; };
    return std::min(conv.C_per_group(), conv.K_per_group()) >= least && is_long(conv.rows) && is_long(conv.cols);
  }

  template <class S>
  static void correlate(const Parts& parts, const S* x, const S* w, S* y, const Epilogue& epilogue) {
    for (const Part& part : parts) winograd::correlate(part.conv, x, w + part.w_offset, y + part.y_offset, epilogue);
  }
  template <class S>
  static void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
    winograd::grad_weight(conv, x, y, w);
  }
};

// grouped, for depthwise convolutions and groups of few channels. In place where that is possible (depthwise_nhwc.h).
struct Grouped {
  static constexpr const char* name = TORCHCONV_IMPLEMENTATION_NAME("grouped");
  using Types = AllTypes;
  static constexpr const char* does = "groups that are no wider than a vector, if its working memory has room for them";
  static constexpr const char* is_for = "groups of which a vector holds several";

  template <class S>
  static bool fits(const Parts& parts) {
    return grouped::fits<S>(parts);
  }
  template <class S>
  static bool fits_weight(const Conv& conv) {
    return grouped::plan<S>(conv).possible;
  }
  // It fills a vector with several groups, while gemm fills it from a single group.
  static bool suits(const Conv& conv, Op) { return grouped::Lanes(conv, Simd<float>::lanes).groups > 1; }

  template <class S>
  static void correlate(const Parts& parts, const S* x, const S* w, S* y, const Epilogue& epilogue) {
    if constexpr (reads_in_place<S> && has_shapes<S>)
      if (grouped::can_correlate_in_place<S>(parts)) return grouped::correlate_in_place(parts, x, w, y, epilogue);
    grouped::correlate(parts, x, w, y, epilogue);
  }
  template <class S>
  static void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
    if constexpr (reads_in_place<S> && has_shapes<S>)
      if (grouped::can_accumulate_in_place<S>(conv)) return grouped::grad_weight_in_place(conv, x, y, w);
    grouped::grad_weight(conv, x, y, w);
  }
};

// spatial, for few channels and for NCHW.
struct Spatial {
  static constexpr const char* name = TORCHCONV_IMPLEMENTATION_NAME("spatial");
  using Types = AllTypes;
  static constexpr const char* does = "problems whose weights and accumulators fit into its working memory";
  static constexpr const char* is_for = "problems that it is estimated to do faster than gemm: few channels, mostly";

  template <class S>
  static bool fits(const Parts& parts) {
    return all_of(parts, [](const Correlation& conv) { return spatial::plan<S>(spatial::flattened(conv)).possible; });
  }
  template <class S>
  static bool fits_weight(const Conv& conv) {
    return spatial::weight_plan<S>(conv).possible;
  }
  // Compares the estimated cycles per output pixel of spatial and gemm.
  static bool suits(const Conv& conv, Op op) {
    if (op == Op::grad_weight) return spatial::weight_cost(conv) < gemm::weight_cost(conv);
    double cost = 0, cost_of_gemm = 0;
    for (const Part& part : op == Op::forward ? forward_parts(conv) : grad_input_parts(conv))
      cost += spatial::cost(spatial::flattened(part.conv)), cost_of_gemm += gemm::cost(part.conv);
    return cost < cost_of_gemm;
  }

  template <class S>
  static void correlate(const Parts& parts, const S* x, const S* w, S* y, const Epilogue& epilogue) {
    for (const Part& part : parts) spatial::correlate(part.conv, x, w + part.w_offset, y + part.y_offset, epilogue);
  }
  template <class S>
  static void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
    spatial::grad_weight(conv, x, y, w);
  }
};

#if defined(TORCHCONV_BF16_PAIRS)
// --- The bfloat16 kernels that are faster with AVX512_BF16 ---------------------------------------------------------

template <class S>
using Bf16Paired = Bf16Pair;

// gemm on bf16 pairs.
struct Bf16PairGemm : Gemm<Bf16Paired> {
  using Types = TypeList<BFloat16>;
  static constexpr const char* does = "bfloat16, if packed weights and accumulators fit into its working memory";
  static constexpr const char* is_for =
      "3 and more channels read and 16 written (grad_weight: 8, and several images) in a group";

  // Twice as fast as the float32 product, where the channels fill its vectors.
  static bool suits(const Conv& conv, Op op) {
    const int64_t in = op == Op::grad_input ? conv.K_per_group() : conv.C_per_group(),
                  out = op == Op::grad_input ? conv.C_per_group() : conv.K_per_group();
    return in >= 3 && out >= (op == Op::grad_weight ? 8 : 16) && !(op == Op::grad_weight && conv.N == 1);
  }
};

// winograd, accumulating in float32, for a single group: with several groups, gemm on bf16 pairs is faster.
struct Bf16Winograd : Winograd {
  using Types = TypeList<BFloat16>;
  static constexpr const char* does =
      "bfloat16: 3x3 kernels of stride 1, with dilations below 2^20 (in grad_weight none), of at most 4096 channels";
  static constexpr const char* is_for = "32 channels and more in one group, and outputs of 4x4 and more";

  static bool suits(const Conv& conv, Op op) { return conv.groups == 1 && Winograd::suits(conv, op); }
};

// Depthwise convolutions whose tensors are read in place (depthwise_nhwc.h).
struct Bf16Depthwise {
  static constexpr const char* name = TORCHCONV_IMPLEMENTATION_NAME("grouped");
  using Types = TypeList<BFloat16>;
  static constexpr const char* does = "bfloat16: depthwise layers in channels_last whose channels fill whole vectors";
  static constexpr const char* is_for = "depthwise layers";

  template <class S>
  static bool fits(const Parts& parts) {
    return grouped::fits<S>(parts) && grouped::can_correlate_in_place<S>(parts);
  }
  template <class S>
  static bool fits_weight(const Conv& conv) {
    return grouped::plan<S>(conv).possible && grouped::can_accumulate_in_place<S>(conv);
  }
  static bool suits(const Conv&, Op) { return true; }

  template <class S>
  static void correlate(const Parts& parts, const S* x, const S* w, S* y, const Epilogue& epilogue) {
    grouped::correlate_in_place(parts, x, w, y, epilogue);
  }
  template <class S>
  static void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
    grouped::grad_weight_in_place(conv, x, y, w);
  }
};
#endif
