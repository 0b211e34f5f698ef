// The kernels that AVX512_BF16 makes faster: see columns.h.

template <class S>
using Paired = Pair;

struct PairGemm : Gemm<Paired> {
  using Types = TypeList<BFloat16>;
  static constexpr const char* does = "bfloat16, if its working memory has room for weights and sums";
  static constexpr const char* is_for =
      "3 and more channels read and 16 written (grad_weight: 8, and several images) in a group";

  // Twice as fast as a product of numbers, where its vectors are filled.
  static bool suits(const Conv& conv, Op op) {
    const int64_t in = op == Op::grad_input ? conv.K_per_group() : conv.C_per_group(),
                  out = op == Op::grad_input ? conv.C_per_group() : conv.K_per_group();
    return in >= 3 && out >= (op == Op::grad_weight ? 8 : 16) && !(op == Op::grad_weight && conv.N == 1);
  }
};

// Pairs are faster still for groups.
struct WinogradOfOneGroup : Winograd {
  using Types = TypeList<BFloat16>;
  static constexpr const char* does =
      "bfloat16: 3x3 kernels of stride 1, with dilations below 2^20 (in grad_weight none), of at most 4096 channels";
  static constexpr const char* is_for = "32 channels and more in one group, and outputs of 4x4 and more";

  static bool suits(const Conv& conv, Op op) { return conv.groups == 1 && Winograd::suits(conv, op); }
};

// Depthwise layers whose tensors are read in place.
struct Depthwise {
  static constexpr const char* name = TORCHCONV_ROW_NAME("slab");
  using Types = TypeList<BFloat16>;
  static constexpr const char* does = "bfloat16: depthwise layers in channels_last whose channels fill whole vectors";
  static constexpr const char* is_for = "depthwise layers";

  template <class S>
  static bool fits(const Parts& parts) {
    return slab::fits<S>(parts) && slab::can_correlate_in_place<S>(parts);
  }
  template <class S>
  static bool fits_weight(const Conv& conv) {
    return slab::plan<S>(conv).possible && slab::can_sum_in_place<S>(conv);
  }
  static bool suits(const Conv&, Op) { return true; }

  template <class S>
  static void correlate(const Parts& parts, const S* x, const S* w, S* y, const Epilogue& epilogue) {
    slab::correlate_in_place(parts, x, w, y, epilogue);
  }
  template <class S>
  static void grad_weight(const Conv& conv, const S* x, const S* y, S* w) {
    slab::grad_weight_in_place(conv, x, y, w);
  }
};
