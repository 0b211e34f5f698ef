// The implementations of each instruction set, and every header that the files in vec/, micro/, pack/ and kernels/
// need. Those files are compiled inside target regions (targets/target_region.h), where no other header may be
// included.
#pragma once

#include "../correlation.h"
#include "../epilogue.h"
#include "../intmath.h"
#include "../registry.h"
#include "../simplify.h"
#include "cpu_features.h"
#include "parallel.h"
#include "scratch.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

// Every instruction set in the build, widest first, whether or not this machine supports it: the names of the
// namespaces in targets/. Builds for tests can restrict themselves to the portable kernels and those for AMX, or to the
// reference, which takes a tenth of the time.
#if defined(__x86_64__)
#define TORCHCONV_X86
#endif
#if defined(TORCHCONV_REFERENCE_ONLY)
#define TORCHCONV_INSTRUCTION_SETS(each)
#elif defined(TORCHCONV_X86) && defined(TORCHCONV_AMX_ONLY)
#define TORCHCONV_INSTRUCTION_SETS(each) each(amx) each(portable)
#elif defined(TORCHCONV_X86)
#define TORCHCONV_INSTRUCTION_SETS(each) each(amx) each(avx512_bf16) each(avx512) each(avx2) each(portable)
#else
#define TORCHCONV_INSTRUCTION_SETS(each) each(portable)
#endif

namespace torchconv::cpu {

// One instruction set. Constant-initialized, since none of its code may run before `available` has returned true.
struct InstructionSet {
  bool (*available)();
  std::span<const Implementation> implementations;
};

#define TORCHCONV_DECLARE(name)                \
  namespace name {                             \
  extern const InstructionSet instruction_set; \
  }
TORCHCONV_INSTRUCTION_SETS(TORCHCONV_DECLARE)
#undef TORCHCONV_DECLARE

#define TORCHCONV_ADDRESS(name) &name::instruction_set,
inline constexpr std::initializer_list<const InstructionSet*> instruction_sets = {
    TORCHCONV_INSTRUCTION_SETS(TORCHCONV_ADDRESS)};
#undef TORCHCONV_ADDRESS

}  // namespace torchconv::cpu
