// The rows of the grid that this instruction set offers: see columns.h.

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

inline std::vector<Implementation> rows(const std::string& isa, bool (*available)()) {
  const auto name = [&](const char* kernel) { return "cpu." + isa + "." + kernel; };
  return {row<Winograd, double, float, BFloat16, Half>(name("winograd"), available),
          row<Slab, double, float, BFloat16, Half>(name("slab"), available),
          row<Planes, double, float, BFloat16, Half>(name("planes"), available),
          row<Gemm<Sum>, double, float, BFloat16, Half>(name("gemm"), available)};
}
