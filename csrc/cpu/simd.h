// The kernels' implementations per instruction set, and all that the files of simd/ need from outside. Those are
// compiled inside target regions: no other header may come in there, or its inline functions would be compiled for one
// instruction set and used by all.
#pragma once

#include "../correlation.h"
#include "../epilogue.h"
#include "../implementation.h"
#include "parallel.h"
#include "scratch.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

// A build for the sanitizers may ask for the portable kernels alone, which take the compiler a tenth of the time.
#if defined(__x86_64__) && !defined(TORCHCONV_PORTABLE_ONLY)
#define TORCHCONV_X86
#endif

namespace torchconv::cpu {

struct InstructionSet {
  bool (*available)();
  std::vector<Implementation> rows;
  double (*fma_peak)();  // what one thread reaches in multiplications and additions, in GFLOP/s
};

InstructionSet avx512_bf16_set();
InstructionSet avx512_set();
InstructionSet avx2_set();
InstructionSet portable_set();

// The instruction sets from the widest down, those included that this machine does not have.
const std::vector<InstructionSet>& instruction_sets();

}  // namespace torchconv::cpu
