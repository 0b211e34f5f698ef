// The rows of the grid that this instruction set offers: see columns.h.

struct Planes {
  static constexpr const char* does = "what its weights and sums leave room for in its working memory";
  static constexpr const char* is_for = "problems that it is estimated to do faster than gemm: few channels, mostly";

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

constexpr Implementation rows[] = {
    row<Winograd, double, float, BFloat16, Half>("cpu." TORCHCONV_ISA ".winograd"),
    row<Slab, double, float, BFloat16, Half>("cpu." TORCHCONV_ISA ".slab"),
    row<Planes, double, float, BFloat16, Half>("cpu." TORCHCONV_ISA ".planes"),
    row<Gemm<Sum>, double, float, BFloat16, Half>("cpu." TORCHCONV_ISA ".gemm"),
};
