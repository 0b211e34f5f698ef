// Compiles kernels for one instruction set: included by the files in the folders beside it, after the description of
// the instruction set (avx512.h and others) and
//   TORCHCONV_INSTANCES   explicit instantiations of templates in ../simd
//   TORCHCONV_ROWS        in one file, which has none of the rows' columns: the rows of the grid that it offers
//
// A description defines
//   TORCHCONV_ISA        the name, of the namespace and in the names of the rows
//   TORCHCONV_VECTOR     the header of its vector type
//   TORCHCONV_FEATURES   what the compiler may use beyond the architecture's least, and the machine must have; x86 only
//   TORCHCONV_PAIRS      if it multiplies pairs of bfloat16
//
// Everything from the standard library comes before the region: an inline function of it, compiled for one instruction
// set, would be taken for all.
#include "../simd.h"

#if !defined(TORCHCONV_FEATURES) || defined(TORCHCONV_X86)

#if defined(TORCHCONV_X86)
// GCC 12 takes the undefined lanes of its own intrinsics for mistakes.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
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
// Outside of the region: it runs on every machine.
inline bool available() {
  constexpr CpuFeatures needed = cpu_features_in(TORCHCONV_FEATURES);
  return (cpu_features() & needed) == needed;
}
}  // namespace torchconv::cpu::TORCHCONV_ISA

TORCHCONV_BEGIN_REGION(TORCHCONV_FEATURES)
namespace torchconv::cpu::TORCHCONV_ISA {
#include "../simd/vector.h"

#include TORCHCONV_VECTOR

#include "../simd/all.h"

#if defined(TORCHCONV_ROWS)
constexpr Implementation rows[] = {TORCHCONV_ROWS};
extern constinit const InstructionSet instruction_set = {available, rows, multiply_adds};
#else
#include "../simd/run.h"
#endif

TORCHCONV_INSTANCES
}  // namespace torchconv::cpu::TORCHCONV_ISA
TORCHCONV_END_REGION

#endif
