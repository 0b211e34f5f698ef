// The rows of the grid that this instruction set offers.
//
// A kernel is a type with these functions, of which the templates are called with the dtype of the tensors:
//   fits<S>(parts)         can `correlate` do it?
//   fits_weight<S>(Conv)   can `grad_weight` do it?
//   suits(Conv, Op)        is it likely to be faster than the rows behind it?
//   correlate, grad_weight

template <class Condition>
bool all_of(const Parts& parts, const Condition& condition) {
  for (const Part& part : parts)
    if (!condition(part.conv)) return false;
  return true;
}

struct Gemm {
  template <class S>
  static bool fits(const Parts& parts) {
    return all_of(parts, [](const Correlation& conv) { return gemm::plan<S>(conv).possible; });
  }
  template <class S>
  static bool fits_weight(const Conv& conv) {
    return gemm::weight_plan<S>(conv).possible;
  }
  static bool suits(const Conv&, Op) { return true; }

  template <class S>
  static void correlate(const Parts& parts, const S* x, const S* w, S* y, const Epilogue& epilogue) {
    for (const Part& part : parts) gemm::correlate(part.conv, x, w + part.w_offset, y + part.y_offset, epilogue);
  }
  template <class S>
  static void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
    gemm::grad_weight(conv, x, y, w);
  }
};

struct Winograd {
  template <class S>
  static bool fits(const Parts& parts) {
    return all_of(parts, [](const Correlation& conv) { return fits_weight<S>(conv); });
  }
  template <class S>
  static bool fits_weight(const Conv& conv) {
    const auto fits = [](const Axis& axis) { return axis.kernel == 3 && axis.stride == 1 && axis.dilation == 1; };
    return fits(conv.rows) && fits(conv.cols) && conv.C_per_group() <= 4096 && conv.K_per_group() <= 4096;
  }
  // It pays from so many channels on: below, its transforms cost more than the products that they save.
  static bool suits(const Conv& conv, Op) {
    return conv.groups == 1 && conv.C >= 32 && conv.K >= 32 && conv.rows.out >= 4 && conv.cols.out >= 4;
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

struct Slab {
  template <class S>
  static bool fits(const Parts& parts) {
    return slab::fits<S>(parts);
  }
  template <class S>
  static bool fits_weight(const Conv& conv) {
    return slab::plan<S>(conv).possible;
  }
  // It fills its vectors with several groups; gemm has one at a time.
  static bool suits(const Conv& conv, Op) { return slab::Lanes(conv, Simd<float>::lanes).groups > 1; }

  template <class S>
  static void correlate(const Parts& parts, const S* x, const S* w, S* y, const Epilogue& epilogue) {
    if (slab::can_correlate_in_place<S>(parts)) return slab::correlate_in_place(parts, x, w, y, epilogue);
    slab::correlate(parts, x, w, y, epilogue);
  }
  template <class S>
  static void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
    if (slab::can_sum_in_place<S>(conv)) return slab::grad_weight_in_place(conv, x, y, w);
    slab::grad_weight(conv, x, y, w);
  }
};

struct Planes {
  template <class S>
  static bool fits(const Parts& parts) {
    return all_of(parts, [](const Correlation& conv) { return planes::plan<S>(planes::flattened(conv)).possible; });
  }
  template <class S>
  static bool fits_weight(const Conv& conv) {
    return planes::weight_plan<S>(conv).possible;
  }
  // By estimates of the time per pixel.
  static bool suits(const Conv& conv, Op op) {
    if (op == Op::grad_weight) return planes::weight_cost(conv) < gemm::weight_cost(conv);
    double cost = 0, cost_of_gemm = 0;
    for (const Part& part : op == Op::forward ? forward_parts(conv) : grad_input_parts(conv))
      cost += planes::cost(planes::flattened(part.conv)), cost_of_gemm += gemm::cost(part.conv);
    return cost < cost_of_gemm;
  }

  template <class S>
  static void correlate(const Parts& parts, const S* x, const S* w, S* y, const Epilogue& epilogue) {
    for (const Part& part : parts) planes::correlate(part.conv, x, w + part.w_offset, y + part.y_offset, epilogue);
  }
  template <class S>
  static void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
    planes::grad_weight(conv, x, y, w);
  }
};

// The functions of a row of the grid.
template <class Kernel>
struct Columns {
  template <class Body>
  static void with_dtype(Dtype dtype, const Body& body) {
    switch (dtype) {
      case Dtype::float64: return body(double());
      case Dtype::float32: return body(float());
      case Dtype::bfloat16: return body(BFloat16());
      case Dtype::float16: return body(Half());
    }
  }

  static bool supports(const Conv& conv, Op op) {
    bool possible = conv.N > 0 && conv.C > 0 && conv.K > 0 && conv.rows.in > 0 && conv.cols.in > 0;
    with_dtype(conv.dtype, [&](auto t) {
      using S = decltype(t);
      if (!possible) return;
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

template <class Kernel>
Implementation row(const std::string& name, bool (*available)()) {
  static const std::string kept = name;
  using F = Columns<Kernel>;
  return {kept.c_str(), available, F::supports, Kernel::suits, F::forward, F::grad_input, F::grad_weight};
}

inline std::vector<Implementation> rows(const std::string& isa, bool (*available)()) {
  return {row<Winograd>("cpu." + isa + ".winograd", available), row<Slab>("cpu." + isa + ".slab", available),
          row<Planes>("cpu." + isa + ".planes", available), row<Gemm>("cpu." + isa + ".gemm", available)};
}
