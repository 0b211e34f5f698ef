// The kernels that several instruction sets offer rows of: see columns.h.

// gemm, whose elements are E<S>: numbers or pairs.
template <template <class S> class E>
struct Gemm {
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
  // It pays from so many channels on: below, its transforms cost more than the products that they save. Groups have
  // less to win from it, and their other kernels more to lose.
  static bool suits(const Conv& conv, Op) {
    const int64_t least = conv.groups == 1 ? 32 : 16;
    return std::min(conv.C_per_group(), conv.K_per_group()) >= least && conv.rows.out >= 4 && conv.cols.out >= 4;
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
    if constexpr (reads_fast<S>)
      if (slab::can_correlate_in_place<S>(parts)) return slab::correlate_in_place(parts, x, w, y, epilogue);
    slab::correlate(parts, x, w, y, epilogue);
  }
  template <class S>
  static void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
    if constexpr (reads_fast<S>)
      if (slab::can_sum_in_place<S>(conv)) return slab::grad_weight_in_place(conv, x, y, w);
    slab::grad_weight(conv, x, y, w);
  }
};
