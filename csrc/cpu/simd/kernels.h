// The kernels that several instruction sets offer rows of: see columns.h.

// gemm, whose elements are E<S>: numbers or pairs.
template <template <class S> class E>
struct Gemm {
  static constexpr const char* name = TORCHCONV_ROW_NAME("gemm");
  using Types = AllTypes;
  static constexpr const char* does = "what its packed weights and sums leave room for in its working memory";
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

struct Winograd {
  static constexpr const char* name = TORCHCONV_ROW_NAME("winograd");
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
    constexpr double bias_bytes = 8 << 20;  // of all groups
    return all_of(parts, [](const Correlation& conv) {
      return fits(conv) && double(conv.groups) * (conv.K_per_group() + 2 * lanes<S>)*sizeof(Sum<S>) <= bias_bytes;
    });
  }
  template <class S>
  static bool fits_weight(const Conv& conv) {
    return fits(conv) && conv.rows.dilation == 1 && conv.cols.dilation == 1;
  }
  // It pays from so many channels on: below, its transforms cost more than the products that they save. Groups have
  // less to win from it, and their other kernels more to lose.
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

struct Slab {
  static constexpr const char* name = TORCHCONV_ROW_NAME("slab");
  using Types = AllTypes;
  static constexpr const char* does = "groups that are no wider than a vector, if its working memory has room for them";
  static constexpr const char* is_for = "groups of which a vector holds several";

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
    if constexpr (reads_fast<S> && has_shapes<S>)
      if (slab::can_correlate_in_place<S>(parts)) return slab::correlate_in_place(parts, x, w, y, epilogue);
    slab::correlate(parts, x, w, y, epilogue);
  }
  template <class S>
  static void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
    if constexpr (reads_fast<S> && has_shapes<S>)
      if (slab::can_sum_in_place<S>(conv)) return slab::grad_weight_in_place(conv, x, y, w);
    slab::grad_weight(conv, x, y, w);
  }
};

struct Planes {
  static constexpr const char* name = TORCHCONV_ROW_NAME("planes");
  using Types = AllTypes;
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
