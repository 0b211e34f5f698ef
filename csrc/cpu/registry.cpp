#include "registry.h"

#include "instruction_sets.h"
#include "reference.h"

namespace torchconv::cpu {

std::vector<Implementation> all_implementations() {
  std::vector<Implementation> all;
  for (const InstructionSet* set : instruction_sets)
    all.insert(all.end(), set->implementations.begin(), set->implementations.end());
  all.push_back(reference());
  return all;
}

}  // namespace torchconv::cpu
