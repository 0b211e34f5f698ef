// The kernels for AVX-512: simd/ once more, in this instruction set's namespace and target region.
#include "simd.h"

#if defined(TORCHCONV_X86)

// GCC 12 takes the undefined lanes of its own intrinsics for mistakes.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define TORCHCONV_ISA "avx512"

namespace torchconv::cpu::avx512 {
bool available() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
}  // namespace torchconv::cpu::avx512

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw")
#endif

namespace torchconv::cpu::avx512 {
#include "simd/vector.h"

#include "simd/avx512.h"

#include "simd/all.h"
}  // namespace torchconv::cpu::avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace torchconv::cpu {

InstructionSet avx512_set() {
#if defined(TORCHCONV_X86)
  return {avx512::available, {std::begin(avx512::rows), std::end(avx512::rows)}, avx512::fma_peak};
#else
  return {[] { return false; }, {}, nullptr};
#endif
}

}  // namespace torchconv::cpu
