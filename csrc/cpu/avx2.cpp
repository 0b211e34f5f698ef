// The kernels for AVX2: simd/ once more, in this instruction set's namespace and target region.
#include "simd.h"

#if defined(TORCHCONV_X86)

#include <immintrin.h>

#define TORCHCONV_ISA "avx2"

namespace torchconv::cpu::avx2 {
bool available() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
}  // namespace torchconv::cpu::avx2

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace torchconv::cpu::avx2 {
#include "simd/vector.h"

#include "simd/avx2.h"

#include "simd/all.h"
}  // namespace torchconv::cpu::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace torchconv::cpu {

InstructionSet avx2_set() {
#if defined(TORCHCONV_X86)
  return {avx2::available, {std::begin(avx2::rows), std::end(avx2::rows)}, avx2::fma_peak};
#else
  return {[] { return false; }, {}, nullptr};
#endif
}

}  // namespace torchconv::cpu
