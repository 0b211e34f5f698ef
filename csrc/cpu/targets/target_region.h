// Compiles kernels for one instruction set, inside its namespace and target region. The .cpp files in the folders
// beside this file include it last, after the description of the instruction set (avx512.h and others), and define
//   TORCHCONV_INSTANCES         explicit instantiations of templates in ../kernels, ../micro and ../pack
//   TORCHCONV_IMPLEMENTATIONS   the implementations of the instruction set; only in kernel_table.cpp, which does not
//                               define the operators of the kernels (../kernels/run.h)
// or, instead of these, TORCHCONV_KERNELS: a header with kernels that are no convolutions, and all that they need.
//
// A description defines
//   TORCHCONV_ISA          the name of the instruction set: its namespace, and a part of its implementations' names
//   TORCHCONV_VECTOR       the header of its vector types
//   TORCHCONV_FEATURES     the CPU features that the compiler may use beyond the baseline of the architecture, and that
//                          the machine must have; x86 only
//   TORCHCONV_BF16_PAIRS   defined if it multiplies bf16 pairs
//
// Standard headers are included before the region. An inline function of theirs that is compiled inside the region
// would use its instructions, and the linker might keep that copy for the whole program.
#include "../instruction_sets.h"

#if !defined(TORCHCONV_FEATURES) || defined(TORCHCONV_X86)

#if defined(TORCHCONV_X86)
// GCC 12 warns about the undefined lanes in its own intrinsics.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

// Tests run wide instruction sets on machines without them: TORCHCONV_EMULATION names a header of functions that stand
// for their intrinsics (tests/emulation), and the compiler may use what the machine has.
#if defined(TORCHCONV_EMULATION) && defined(TORCHCONV_FEATURES)
#undef TORCHCONV_FEATURES
#define TORCHCONV_FEATURES "avx2,fma,f16c"
#define TORCHCONV_EMULATED
#endif

#define TORCHCONV_PRAGMA(text) _Pragma(#text)
#if !defined(TORCHCONV_FEATURES)
#define TORCHCONV_FEATURES ""
#define TORCHCONV_BEGIN_REGION(features)
#define TORCHCONV_END_REGION
#elif defined(__clang__)
#define TORCHCONV_BEGIN_REGION(features) \
  TORCHCONV_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TORCHCONV_END_REGION TORCHCONV_PRAGMA(clang attribute pop)
#else
#define TORCHCONV_BEGIN_REGION(features) \
  TORCHCONV_PRAGMA(GCC push_options)     \
  TORCHCONV_PRAGMA(GCC target(features))
#define TORCHCONV_END_REGION TORCHCONV_PRAGMA(GCC pop_options)
#endif

namespace torchconv::cpu::TORCHCONV_ISA {
// Outside of the region, because it runs on every machine.
inline bool available() {
  constexpr CpuFeatures needed = cpu_features_in(TORCHCONV_FEATURES);
  return (cpu_features() & needed) == needed;
}
}  // namespace torchconv::cpu::TORCHCONV_ISA

TORCHCONV_BEGIN_REGION(TORCHCONV_FEATURES)
namespace torchconv::cpu::TORCHCONV_ISA {
#include "../vec/vec.h"

#if defined(TORCHCONV_EMULATED)
#include TORCHCONV_EMULATION
#endif

#include TORCHCONV_VECTOR

#if defined(TORCHCONV_KERNELS)
#include TORCHCONV_KERNELS
#else
#include "../kernels/all.h"

#if defined(TORCHCONV_IMPLEMENTATIONS)
constexpr Implementation implementations[] = {TORCHCONV_IMPLEMENTATIONS};
extern constinit const InstructionSet instruction_set = {available, implementations};
#else
#include "../kernels/run.h"
#endif

TORCHCONV_INSTANCES
#endif
}  // namespace torchconv::cpu::TORCHCONV_ISA
TORCHCONV_END_REGION

#endif
