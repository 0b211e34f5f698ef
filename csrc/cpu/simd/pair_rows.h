// The row of the grid that multiplies pairs.

template <class S>
using Paired = Pair;

struct PairGemm : Gemm<Paired> {
  // Twice as fast as a product of numbers, where its vectors are filled. winograd saves more than that.
  static bool suits(const Conv& conv, Op op) {
    const auto is_plain = [](const Axis& axis) { return axis.kernel == 3 && axis.stride == 1 && axis.dilation == 1; };
    const bool winograd = is_plain(conv.rows) && is_plain(conv.cols) && conv.groups == 1 && conv.C >= 32 &&
                          conv.K >= 32 && conv.rows.out >= 4 && conv.cols.out >= 4;
    const int64_t in = op == Op::grad_input ? conv.K_per_group() : conv.C_per_group(),
                  out = op == Op::grad_input ? conv.C_per_group() : conv.K_per_group();
    return !winograd && in >= 3 && out >= 16 && !(op == Op::grad_weight && conv.N == 1);
  }
};

inline std::vector<Implementation> rows(bool (*available)()) {
  return {row<PairGemm, BFloat16>("cpu.avx512_bf16.gemm", available)};
}
