// Which kernel computes which problem: the list of kernels, and the implementations (rows of the grid, registry.h) that
// they make.
//
// A kernel is a type with these members. S is the dtype of the tensors:
//   name                  the name of the implementation
//   Types                 the dtypes it supports, a TypeList
//   supported, suited     the problems that it supports and suits, in words
//   suits(Conv, Op)       whether it is likely to be faster than the implementations after it
//   Correlate<S>          a plan of forward or grad_input, constructed from the parts of the result
//   GradWeight<S>         a plan of grad_weight, constructed from the problem; may be missing
//
// A plan has these members:
//   possible              whether the kernel supports the problem
//   describe()            its tiles and blocks in words
//   run(...)              computes; instantiated by the files that define Operators (run.h)

template <class Kernel>
concept has_grad_weight = requires { typename Kernel::template GradWeight<float>; };

// The operators of an implementation, defined in run.h.
template <class Kernel>
struct Operators {
  static void forward(const AnyPlan& plan, const void* x, const void* w, void* y, const Epilogue& epilogue);
  static void grad_input(const AnyPlan& plan, const void* y, const void* w, void* x);
  static void grad_weight(const AnyPlan& plan, const void* x, const void* y, void* w);
};

// The start of the description of a plan of `phases` phases, which goes on with the plan of the first one.
inline std::string in_phases(size_t phases) { return phases > 1 ? counted(phases, "phase") + ", each: " : ""; }

// Maximum number of phases of grad_input. With more, a phase has hardly more than a pixel, and listing the phases takes
// longer than computing them.
constexpr double max_phases = 4096;

// Implementation::plan, of the simplified problem. Empty problems are left to the reference.
template <class Kernel>
bool make_plan(const Conv& given, Op op, AnyPlan& plan) {
  if (given.N == 0 || given.C == 0 || given.K == 0 || given.rows.in == 0 || given.cols.in == 0) return false;
  const Conv conv = simplified(given, op);
  if (op == Op::grad_input && grad_input_phases(conv) > max_phases) return false;
  bool possible = false;
  Kernel::Types::with(conv.dtype, [&](auto t) {
    using Correlate = typename Kernel::template Correlate<decltype(t)>;
    switch (op) {
      case Op::forward: possible = plan.emplace<Correlate>(conv.dtype, forward_parts(conv)).possible; break;
      case Op::grad_input: possible = plan.emplace<Correlate>(conv.dtype, grad_input_parts(conv)).possible; break;
      case Op::grad_weight:
        if constexpr (has_grad_weight<Kernel>)
          possible = plan.emplace<typename Kernel::template GradWeight<decltype(t)>>(conv.dtype, conv).possible;
        break;
    }
  });
  return possible;
}

// Implementation::suits.
template <class Kernel>
bool suits(const Conv& conv, Op op) {
  return Kernel::suits(simplified(conv, op), op);
}

// Implementation::describe.
template <class Kernel>
std::string describe(const AnyPlan& plan, Op op) {
  std::string text;
  Kernel::Types::with(plan.dtype(), [&](auto t) {
    using S = decltype(t);
    if (op != Op::grad_weight) text = plan.get<typename Kernel::template Correlate<S>>().describe();
    if constexpr (has_grad_weight<Kernel>)
      if (op == Op::grad_weight) text = plan.get<typename Kernel::template GradWeight<S>>().describe();
  });
  return text;
}

template <class Kernel>
constexpr Implementation implementation() {
  return {.name = Kernel::name,
          .device = Device::cpu,
          .available = available,
          .suits = suits<Kernel>,
          .supported = Kernel::supported,
          .suited = Kernel::suited,
          .plan = make_plan<Kernel>,
          .describe = describe<Kernel>,
          .forward = Operators<Kernel>::forward,
          .grad_input = Operators<Kernel>::grad_input,
          .grad_weight = has_grad_weight<Kernel> ? Operators<Kernel>::grad_weight : nullptr};
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
  static constexpr const char* supported = "problems whose packed weights and accumulators fit into its working memory";
  static constexpr const char* suited = "everything";

  static bool suits(const Conv&, Op) { return true; }

  template <class S>
  struct Correlate {
    struct Step {
      Part part;
      gemm::Plan<E<S>, S> plan;
    };
    InlineVector<Step, 4> steps;
    bool possible = true;

    explicit Correlate(const Parts& parts) {
      for (const Part& part : parts) {
        steps.push_back({part, gemm::plan<E<S>, S>(part.conv)});
        possible = possible && steps.back().plan.possible;
      }
    }
    std::string describe() const { return in_phases(steps.size()) + steps.front().plan.describe(); }
    void run(const S* x, const S* w, S* y, const Epilogue& epilogue) const {
      for (const auto& [part, plan] : steps)
        gemm::correlate(part.conv, plan, x, w + part.w_offset, y + part.y_offset, epilogue);
    }
  };

  template <class S>
  struct GradWeight {
    Conv conv;
    gemm::WeightPlan<S> plan;
    bool possible;

    explicit GradWeight(const Conv& conv)
        : conv(conv), plan(gemm::weight_plan<E<S>, S>(conv)), possible(plan.possible) {}
    std::string describe() const { return plan.describe(); }
    void run(const S* x, const S* y, S* w) const { gemm::grad_weight<E<S>>(conv, plan, x, y, w); }
  };
};

// linear, for a single output pixel.
struct Linear {
  static constexpr const char* name = TORCHCONV_IMPLEMENTATION_NAME("linear");
  using Types = AllTypes;
  static constexpr const char* supported =
      "one group whose window is the whole input, in forward and grad_input, if the weights of a window are contiguous";
  static constexpr const char* suited = "everything that it supports";

  static bool suits(const Conv&, Op) { return true; }

  template <class S>
  struct Correlate {
    Correlation conv;
    linear::Plan<S> plan;
    bool possible;

    explicit Correlate(const Parts& parts)
        : conv(parts.front().conv), plan(linear::plan<S>(conv)), possible(parts.size() == 1 && plan.possible) {}
    std::string describe() const { return plan.describe(); }
    void run(const S* x, const S* w, S* y, const Epilogue& epilogue) const {
      linear::correlate(conv, plan, x, w, y, epilogue);
    }
  };
};

// winograd, for 3x3 kernels of stride 1.
struct Winograd {
  static constexpr const char* name = TORCHCONV_IMPLEMENTATION_NAME("winograd");
  using Types = AllTypes;
  static constexpr const char* supported =
      "3x3 kernels of stride 1, with dilations below 2^20 (in grad_weight none), of at most 4096 channels a group";
  static constexpr const char* suited =
      "32 channels and more (16 in each of several groups) and outputs of 4x4 and more";

  static bool is_supported(const Conv& conv) {
    return conv.rows.kernel == 3 && conv.cols.kernel == 3 && conv.rows.stride == 1 && conv.cols.stride == 1 &&
           conv.rows.dilation < 1 << 20 && conv.cols.dilation < 1 << 20 && conv.C_per_group() <= 4096 &&
           conv.K_per_group() <= 4096;
  }
  // Pays off with 32 or more channels: with fewer, the transforms cost more than the products that they save. With
  // several groups, winograd gains less, but the other kernels lose more, and 16 channels are enough.
  static bool suits(const Conv& conv, Op) {
    const int64_t least = conv.groups == 1 ? 32 : 16;
    const auto is_long = [](const Axis& axis) { return axis.out / axis.dilation >= 4; };
    return std::min(conv.C_per_group(), conv.K_per_group()) >= least && is_long(conv.rows) && is_long(conv.cols);
  }

  template <class S>
  struct Correlate {
    // The packed bias of all groups. No larger than gemm's, which computes outlier tiles.
    static constexpr double bias_bytes = 4 << 20;

    Parts parts;
    bool possible = true;

    explicit Correlate(const Parts& parts) : parts(parts) {
      for (const auto& [conv, w_offset, y_offset] : parts)
        possible = possible && is_supported(conv) &&
                   double(conv.groups) * (conv.K_per_group() + 2 * lanes<S>)*sizeof(Acc<S>) <= bias_bytes;
    }
    std::string describe() const { return in_phases(parts.size()) + winograd::describe<S>(parts.front().conv); }
    void run(const S* x, const S* w, S* y, const Epilogue& epilogue) const {
      for (const Part& part : parts) winograd::correlate(part.conv, x, w + part.w_offset, y + part.y_offset, epilogue);
    }
  };

  template <class S>
  struct GradWeight {
    Conv conv;
    bool possible;

    explicit GradWeight(const Conv& conv)
        : conv(conv), possible(is_supported(conv) && conv.rows.dilation == 1 && conv.cols.dilation == 1) {}
    std::string describe() const { return winograd::describe_grad_weight<S>(conv); }
    void run(const S* x, const S* y, S* w) const { winograd::grad_weight(conv, x, y, w); }
  };
};

// grouped, for depthwise convolutions and groups of few channels. In place where that is possible (depthwise_nhwc.h).
struct Grouped {
  static constexpr const char* name = TORCHCONV_IMPLEMENTATION_NAME("grouped");
  using Types = AllTypes;
  static constexpr const char* supported =
      "groups that are no wider than a vector, if its working memory has room for them";
  static constexpr const char* suited = "groups of which a vector holds several";

  // It fills a vector with several groups, while gemm fills it from a single group.
  static bool suits(const Conv& conv, Op) { return grouped::Lanes(conv, Simd<float>::lanes).groups > 1; }

  template <class S>
  struct Correlate {
    grouped::PartsPlan<S> plan;
    bool in_place, possible;

    explicit Correlate(const Parts& parts)
        : plan(parts), in_place(grouped::can_correlate_in_place<S>(parts)), possible(plan.possible) {}
    std::string describe() const { return in_place ? grouped::in_place_description : plan.describe(); }
    void run(const S* x, const S* w, S* y, const Epilogue& epilogue) const {
      if constexpr (reads_in_place<S> && has_shapes<S>)
        if (in_place) return grouped::correlate_in_place(plan.parts, x, w, y, epilogue);
      grouped::correlate(plan, x, w, y, epilogue);
    }
  };

  template <class S>
  struct GradWeight {
    Conv conv;
    grouped::Plan plan;
    bool in_place, possible;

    explicit GradWeight(const Conv& conv)
        : conv(conv),
          plan(grouped::plan<S>(conv)),
          in_place(grouped::can_accumulate_in_place<S>(conv)),
          possible(plan.possible) {}
    std::string describe() const { return in_place ? grouped::in_place_description : plan.describe(); }
    void run(const S* x, const S* y, S* w) const {
      if constexpr (reads_in_place<S> && has_shapes<S>)
        if (in_place) return grouped::grad_weight_in_place(conv, x, y, w);
      grouped::grad_weight(conv, plan, x, y, w);
    }
  };
};

// spatial, for few channels and for NCHW.
struct Spatial {
  static constexpr const char* name = TORCHCONV_IMPLEMENTATION_NAME("spatial");
  using Types = AllTypes;
  static constexpr const char* supported = "problems whose weights and accumulators fit into its working memory";
  static constexpr const char* suited = "problems that it is estimated to do faster than gemm: few channels, mostly";

  // Compares the estimated cycles per output pixel of spatial and gemm.
  static bool suits(const Conv& conv, Op op) {
    if (op == Op::grad_weight) return spatial::weight_cost(conv) < gemm::weight_cost(conv);
    double cost = 0, cost_of_gemm = 0;
    for (const Part& part : op == Op::forward ? forward_parts(conv) : grad_input_parts(conv)) {
      cost += spatial::cost(spatial::flattened(part.conv));
      cost_of_gemm += gemm::cost(part.conv);
    }
    return cost < cost_of_gemm;
  }

  template <class S>
  struct Correlate {
    struct Step {
      Part part;  // flattened
      spatial::Plan<S> plan;
    };
    InlineVector<Step, 4> steps;
    bool possible = true;

    explicit Correlate(const Parts& parts) {
      for (Part part : parts) {
        part.conv = spatial::flattened(part.conv);
        steps.push_back({part, spatial::plan<S>(part.conv)});
        possible = possible && steps.back().plan.possible;
      }
    }
    std::string describe() const { return in_phases(steps.size()) + steps.front().plan.describe(); }
    void run(const S* x, const S* w, S* y, const Epilogue& epilogue) const {
      for (const auto& [part, plan] : steps)
        spatial::correlate(part.conv, plan, x, w + part.w_offset, y + part.y_offset, epilogue);
    }
  };

  template <class S>
  struct GradWeight {
    Conv conv;
    spatial::WeightPlan<S> plan;
    bool possible;

    explicit GradWeight(const Conv& conv) : conv(conv), plan(spatial::weight_plan<S>(conv)), possible(plan.possible) {}
    std::string describe() const { return plan.describe(); }
    void run(const S* x, const S* y, S* w) const { spatial::grad_weight(conv, plan, x, y, w); }
  };
};

#if defined(TORCHCONV_BF16_PAIRS)
// --- The bfloat16 kernels that are faster with AVX512_BF16 ---------------------------------------------------------

template <class S>
using Bf16Paired = Bf16Pair;

// gemm on bf16 pairs.
struct Bf16PairGemm : Gemm<Bf16Paired> {
  using Types = TypeList<BFloat16>;
  static constexpr const char* supported = "bfloat16, if packed weights and accumulators fit into its working memory";
  static constexpr const char* suited =
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
  static constexpr const char* supported =
      "bfloat16: 3x3 kernels of stride 1, with dilations below 2^20 (in grad_weight none), of at most 4096 channels";
  static constexpr const char* suited = "32 channels and more in one group, and outputs of 4x4 and more";

  static bool suits(const Conv& conv, Op op) { return conv.groups == 1 && Winograd::suits(conv, op); }
};

// Depthwise convolutions whose tensors are read in place (depthwise_nhwc.h).
struct Bf16Depthwise {
  static constexpr const char* name = TORCHCONV_IMPLEMENTATION_NAME("grouped");
  using Types = TypeList<BFloat16>;
  static constexpr const char* supported = "bfloat16: depthwise layers in channels_last of at least 16 channels";
  static constexpr const char* suited = "depthwise layers";

  static bool suits(const Conv&, Op) { return true; }

  template <class S>
  struct Correlate {
    Parts parts;
    bool possible;

    explicit Correlate(const Parts& parts)
        : parts(parts), possible(grouped::PartsPlan<S>(parts).possible && grouped::can_correlate_in_place<S>(parts)) {}
    std::string describe() const { return grouped::in_place_description; }
    void run(const S* x, const S* w, S* y, const Epilogue& epilogue) const {
      grouped::correlate_in_place(parts, x, w, y, epilogue);
    }
  };

  template <class S>
  struct GradWeight {
    Conv conv;
    bool possible;

    explicit GradWeight(const Conv& conv)
        : conv(conv), possible(grouped::plan<S>(conv).possible && grouped::can_accumulate_in_place<S>(conv)) {}
    std::string describe() const { return grouped::in_place_description; }
    void run(const S* x, const S* y, S* w) const { grouped::grad_weight_in_place(conv, x, y, w); }
  };
};
#endif

#if defined(TORCHCONV_AMX)
// --- The bfloat16 kernels on AMX tiles -----------------------------------------------------------------------------

// gemm on AMX tiles.
struct AmxGemm {
  static constexpr const char* name = TORCHCONV_IMPLEMENTATION_NAME("gemm");
  using Types = TypeList<BFloat16>;
  static constexpr const char* supported = "bfloat16, if packed weights and patches fit into its working memory";
  static constexpr const char* suited =
      "16 and more channels written in a group, 3 and more read (16 times taps and more), and 8 and more pixels";

  // Pays off where the channels fill at least half of most tiles.
  static bool suits(const Conv& conv, Op op) {
    const int64_t in = op == Op::grad_input ? conv.K_per_group() : conv.C_per_group(),
                  out = op == Op::grad_input ? conv.C_per_group() : conv.K_per_group();
    const double window = double(conv.rows.kernel) * conv.cols.kernel * in;
    const double pixels =
        op == Op::grad_input ? double(conv.rows.in) * conv.cols.in : double(conv.rows.out) * conv.cols.out;
    return in >= 3 && window >= 16 && out >= 16 && pixels >= 8;
  }

  template <class S>
  struct Correlate {
    struct Step {
      Part part;
      amx_gemm::Plan plan;
    };
    InlineVector<Step, 4> steps;
    bool possible = true;

    explicit Correlate(const Parts& parts) {
      for (const Part& part : parts) {
        steps.push_back({part, amx_gemm::plan(part.conv)});
        possible = possible && steps.back().plan.possible;
      }
    }
    std::string describe() const { return in_phases(steps.size()) + steps.front().plan.describe(); }
    void run(const S* x, const S* w, S* y, const Epilogue& epilogue) const {
      for (const auto& [part, plan] : steps)
        amx_gemm::correlate(part.conv, plan, x, w + part.w_offset, y + part.y_offset, epilogue);
    }
  };

  template <class S>
  struct GradWeight {
    Conv conv;
    amx_gemm::WeightPlan plan;
    bool possible;

    explicit GradWeight(const Conv& conv) : conv(conv), plan(amx_gemm::weight_plan(conv)), possible(plan.possible) {}
    std::string describe() const { return plan.describe(); }
    void run(const S* x, const S* y, S* w) const { amx_gemm::grad_weight(conv, plan, x, y, w); }
  };
};
#endif
