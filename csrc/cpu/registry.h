#pragma once

#include "../registry.h"

namespace torchconv::cpu {

// Those of all instruction sets, from the widest down, then the reference.
std::vector<Implementation> all_implementations();

}  // namespace torchconv::cpu
