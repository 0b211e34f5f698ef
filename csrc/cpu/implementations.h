#pragma once

#include "../implementation.h"

namespace torchconv::cpu {

std::vector<Implementation> rows();  // those of all instruction sets from the widest down, then the reference

}  // namespace torchconv::cpu
