// The kernels for bfloat16 where AVX512_BF16 is: simd/ once more, in this instruction set's namespace and target
// region.
#include "simd.h"

#if defined(TORCHCONV_X86)

// GCC 12 takes the undefined lanes of its own intrinsics for mistakes.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define TORCHCONV_ISA "avx512_bf16"

namespace torchconv::cpu::avx512_bf16 {
bool available() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("avx512bf16");
}
}  // namespace torchconv::cpu::avx512_bf16

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw")
#endif

namespace torchconv::cpu::avx512_bf16 {
#include "simd/vector.h"

#include "simd/avx512.h"

#include "simd/avx512_bf16.h"

#include "simd/tile.h"

#include "simd/pairs.h"

#include "simd/mma.h"

#include "simd/dot.h"

#include "simd/patch.h"

#include "simd/weights.h"

#include "simd/gemm.h"

#include "simd/gemm_weight.h"

#include "simd/winograd_tiles.h"

#include "simd/winograd.h"

#include "simd/winograd_weight.h"

#include "simd/taps.h"

#include "simd/slab.h"

#include "simd/depthwise.h"

#include "simd/peak.h"

#include "simd/columns.h"

#include "simd/kernels.h"

#include "simd/pair_rows.h"
}  // namespace torchconv::cpu::avx512_bf16

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace torchconv::cpu {

InstructionSet avx512_bf16_set() {
#if defined(TORCHCONV_X86)
  return {avx512_bf16::available, {std::begin(avx512_bf16::rows), std::end(avx512_bf16::rows)}, avx512_bf16::fma_peak};
#else
  return {[] { return false; }, {}, nullptr};
#endif
}

}  // namespace torchconv::cpu
