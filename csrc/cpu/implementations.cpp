#include "implementations.h"

#include "reference.h"
#include "simd.h"

namespace torchconv::cpu {

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = {avx512_bf16_set(), avx512_set(), avx2_set(), portable_set()};
  return sets;
}

std::vector<Implementation> rows() {
  std::vector<Implementation> all;
  for (const InstructionSet& set : instruction_sets()) all.insert(all.end(), set.rows.begin(), set.rows.end());
  all.push_back(reference());
  return all;
}

}  // namespace torchconv::cpu
