#pragma once

#include "../registry.h"

namespace torchconv::cpu {

Implementation reference();

}  // namespace torchconv::cpu
