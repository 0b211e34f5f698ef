// The kernels' implementations per instruction set, and all that the files of simd/ need from outside. Those are compiled
// inside target regions: no other header may come in there, or its inline functions would be compiled for one instruction
// set and used by all.
#pragma once

#include "../implementation.h"
#include "correlation.h"
#include "epilogue.h"
#include "parallel.h"
#include "scratch.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace torchconv::cpu {

std::vector<Implementation> avx512_rows();
std::vector<Implementation> avx2_rows();
std::vector<Implementation> portable_rows();

}  // namespace torchconv::cpu
