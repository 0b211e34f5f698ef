// The row of the grid that multiplies pairs.

template <class S>
using Paired = Pair;

struct PairGemm : Gemm<Paired> {
  static bool suits(const Conv&, Op) { return true; }
};

inline std::vector<Implementation> rows(bool (*available)()) {
  return {row<PairGemm, BFloat16>("cpu.avx512_bf16.gemm", available)};
}
