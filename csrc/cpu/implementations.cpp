#include "implementations.h"

#include "reference.h"
#include "simd.h"

namespace torchconv::cpu {

std::vector<Implementation> rows() {
  std::vector<Implementation> all;
  for (const InstructionSet* set : instruction_sets) all.insert(all.end(), set->rows.begin(), set->rows.end());
  all.push_back(reference());
  return all;
}

}  // namespace torchconv::cpu
