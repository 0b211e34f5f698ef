// The kernels' implementations per instruction set, and everything that the files of simd/ need from outside. Those are
// compiled inside target regions (targets/target_region.h): no other header may come in there.
#pragma once

#include "../correlation.h"
#include "../epilogue.h"
#include "../implementation.h"
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
#include <type_traits>
#include <utility>
#include <vector>

// A build for the sanitizers may ask for the portable kernels alone, which take the compiler a tenth of the time.
#if defined(__x86_64__) && !defined(TORCHCONV_PORTABLE_ONLY)
#define TORCHCONV_X86
#endif

namespace torchconv::cpu {

// All constants: no code of an instruction set may run before `available` has been queried.
struct InstructionSet {
  bool (*available)();
  std::span<const Implementation> rows;
  double (*multiply_adds)();  // does some thousands, as fast as one thread can; how many operations that was
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

// From the widest down, those included that this machine does not have.
inline constexpr const InstructionSet* instruction_sets[] = {
#if defined(TORCHCONV_X86)
    &avx512_bf16::instruction_set, &avx512::instruction_set, &avx2::instruction_set,
#endif
    &portable::instruction_set};

}  // namespace torchconv::cpu
