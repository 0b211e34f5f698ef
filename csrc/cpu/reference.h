#pragma once

#include "../implementation.h"

namespace torchconv::cpu {

Implementation reference();

}  // namespace torchconv::cpu
