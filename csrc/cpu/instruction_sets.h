// The implementations of each instruction set, and every header that the files in vec/, micro/, pack/ and kernels/
// need. Those files are compiled inside target regions (targets/target_region.h), where no other header may be
// included.
#pragma once

#include "../correlation.h"
#include "../epilogue.h"
#include "../intmath.h"
#include "../registry.h"
#include "cpu_features.h"
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
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

// Sanitizer builds can restrict themselves to the portable kernels, which compile in a tenth of the time.
#if defined(__x86_64__) && !defined(TORCHCONV_PORTABLE_ONLY)
#define TORCHCONV_X86
#endif

namespace torchconv::cpu {

// One instruction set. Constant-initialized, since none of its code may run before `available` has returned true.
struct InstructionSet {
  bool (*available)();
  std::span<const Implementation> implementations;
};

#if defined(TORCHCONV_X86)
namespace avx512_bf16 {
extern const InstructionSet instruction_set;
}
namespace avx512 {
extern const InstructionSet instruction_set;
}
namespace avx2 {
extern const InstructionSet instruction_set;
}
#endif
namespace portable {
extern const InstructionSet instruction_set;
}

// Every instruction set in the build, widest first, whether or not this machine supports it.
inline constexpr const InstructionSet* instruction_sets[] = {
#if defined(TORCHCONV_X86)
    &avx512_bf16::instruction_set, &avx512::instruction_set, &avx2::instruction_set,
#endif
    &portable::instruction_set};

}  // namespace torchconv::cpu
