#include "../implementation.h"
#include "reference.h"
#include "simd.h"

namespace torchconv {

namespace cpu {

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = {avx512_bf16_set(), avx512_set(), avx2_set(), portable_set()};
  return sets;
}

}  // namespace cpu

const std::vector<Implementation>& implementations() {
  static const std::vector<Implementation> rows = [] {
    std::vector<Implementation> all;
    for (const cpu::InstructionSet& set : cpu::instruction_sets())
      all.insert(all.end(), set.rows.begin(), set.rows.end());
    all.push_back(cpu::reference());
    return all;
  }();
  return rows;
}

}  // namespace torchconv
