// The rows of the grid that this instruction set offers.

template <class Body>
void with_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::float64: return body(double());
    case Dtype::float32: return body(float());
    case Dtype::bfloat16: return body(BFloat16());
    case Dtype::float16: return body(Half());
  }
}

inline bool gemm_supports(const Conv& conv, Op op) {
  bool possible = true;
  with_dtype(conv.dtype, [&](auto t) {
    using S = decltype(t);
    if (op == Op::forward) {
      possible = gemm::plan<S>(forward_correlation(conv)).possible;
    } else if (op == Op::grad_weight) {
      possible = gemm::weight_plan<S>(conv).possible;
    } else {
      for_each_phase(conv,
                     [&](const Correlation& phase, int64_t, int64_t) { possible &= gemm::plan<S>(phase).possible; });
    }
  });
  return possible;
}

inline void gemm_forward(const Conv& conv, const void* x, const void* w, void* y, const Epilogue& epilogue) {
  with_dtype(conv.dtype, [&](auto t) {
    using S = decltype(t);
    gemm::correlate(forward_correlation(conv), static_cast<const S*>(x), static_cast<const S*>(w), static_cast<S*>(y),
                    epilogue);
  });
}

inline void gemm_grad_input(const Conv& conv, const void* y, const void* w, void* x) {
  with_dtype(conv.dtype, [&](auto t) {
    using S = decltype(t);
    for_each_phase(conv, [&](const Correlation& phase, int64_t w_offset, int64_t x_offset) {
      gemm::correlate(phase, static_cast<const S*>(y), static_cast<const S*>(w) + w_offset,
                      static_cast<S*>(x) + x_offset, Epilogue());
    });
  });
}

inline void gemm_grad_weight(const Conv& conv, const void* x, const void* y, void* w) {
  with_dtype(conv.dtype, [&](auto t) {
    using S = decltype(t);
    gemm::grad_weight(conv, static_cast<const S*>(x), static_cast<const S*>(y), static_cast<S*>(w));
  });
}

inline bool winograd_supports(const Conv& conv, Op op) {
  const auto fits = [](const Axis& axis) { return axis.kernel == 3 && axis.stride == 1 && axis.dilation == 1; };
  return fits(conv.rows) && fits(conv.cols) && conv.C_per_group() <= 4096 && conv.K_per_group() <= 4096 && conv.C > 0 &&
         conv.N > 0;
}

inline void winograd_forward(const Conv& conv, const void* x, const void* w, void* y, const Epilogue& epilogue) {
  with_dtype(conv.dtype, [&](auto t) {
    using S = decltype(t);
    winograd::correlate(forward_correlation(conv), static_cast<const S*>(x), static_cast<const S*>(w),
                        static_cast<S*>(y), epilogue);
  });
}

inline void winograd_grad_input(const Conv& conv, const void* y, const void* w, void* x) {
  with_dtype(conv.dtype, [&](auto t) {
    using S = decltype(t);
    for_each_phase(conv, [&](const Correlation& phase, int64_t w_offset, int64_t x_offset) {
      winograd::correlate(phase, static_cast<const S*>(y), static_cast<const S*>(w) + w_offset,
                          static_cast<S*>(x) + x_offset, Epilogue());
    });
  });
}

inline bool slab_supports(const Conv& conv, Op op) {
  bool possible = true;
  with_dtype(conv.dtype, [&](auto t) {
    using S = decltype(t);
    if (op != Op::grad_input) {
      possible = slab::plan<S>(conv).possible;
    } else {
      for_each_phase(conv,
                     [&](const Correlation& phase, int64_t, int64_t) { possible &= slab::plan<S>(phase).possible; });
    }
  });
  return possible;
}

inline void slab_forward(const Conv& conv, const void* x, const void* w, void* y, const Epilogue& epilogue) {
  with_dtype(conv.dtype, [&](auto t) {
    using S = decltype(t);
    slab::correlate(forward_correlation(conv), static_cast<const S*>(x), static_cast<const S*>(w), static_cast<S*>(y),
                    epilogue);
  });
}

inline void slab_grad_input(const Conv& conv, const void* y, const void* w, void* x) {
  with_dtype(conv.dtype, [&](auto t) {
    using S = decltype(t);
    for_each_phase(conv, [&](const Correlation& phase, int64_t w_offset, int64_t x_offset) {
      slab::correlate(phase, static_cast<const S*>(y), static_cast<const S*>(w) + w_offset,
                      static_cast<S*>(x) + x_offset, Epilogue());
    });
  });
}

inline void slab_grad_weight(const Conv& conv, const void* x, const void* y, void* w) {
  with_dtype(conv.dtype, [&](auto t) {
    using S = decltype(t);
    slab::grad_weight(conv, static_cast<const S*>(x), static_cast<const S*>(y), static_cast<S*>(w));
  });
}

inline void winograd_grad_weight(const Conv& conv, const void* x, const void* y, void* w) {
  with_dtype(conv.dtype, [&](auto t) {
    using S = decltype(t);
    winograd::grad_weight(conv, static_cast<const S*>(x), static_cast<const S*>(y), static_cast<S*>(w));
  });
}

// Winograd pays from so many channels on: below, its transforms cost more than the products that they save.
inline bool winograd_suits(const Conv& conv, Op op) {
  return conv.groups == 1 && conv.C >= 32 && conv.K >= 32 && conv.rows.out >= 4 && conv.cols.out >= 4;
}

// The slab kernel fills its vectors with several groups; gemm has one at a time.
inline bool slab_suits(const Conv& conv, Op op) { return slab::Lanes(conv, Simd<float>::lanes).groups > 1; }

inline bool always(const Conv&, Op) { return true; }

inline std::vector<Implementation> rows(const std::string& isa, bool (*available)()) {
  static const std::string names[] = {"cpu." + isa + ".winograd", "cpu." + isa + ".slab", "cpu." + isa + ".gemm"};
  return {
      {names[0].c_str(), available, winograd_supports, winograd_suits, winograd_forward, winograd_grad_input,
       winograd_grad_weight},
      {names[1].c_str(), available, slab_supports, slab_suits, slab_forward, slab_grad_input, slab_grad_weight},
      {names[2].c_str(), available, gemm_supports, always, gemm_forward, gemm_grad_input, gemm_grad_weight},
  };
}
