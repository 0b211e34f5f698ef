// Wrappers for the PTX instructions that have no C++ equivalent, one function each. The PTX ISA manual describes them
// (https://docs.nvidia.com/cuda/parallel-thread-execution). All of them need sm_80.
//
// tests/native/cuda/ptx_emulation.h implements the same functions for an emulated GPU.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

#ifndef __CUDACC__
#include "ptx_emulation.h"
#else

#define DEVICE __device__ __forceinline__
#define KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)  // blocks: minimum per SM
#define SHARED __shared__
#define SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]  // sized by the launch
#define UNROLL(...) _Pragma("unroll") for (__VA_ARGS__)

namespace torchconv::cuda::ptx {

DEVICE uint32_t shared_address(const void* shared) { return static_cast<uint32_t>(__cvta_generic_to_shared(shared)); }

// cp.async: copies 16 bytes from global to shared memory; both addresses must be 16-byte aligned. If `valid` is false,
// it writes zeros and does not access the global address, which may then be out of bounds.
DEVICE void copy_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}

// cp.async.commit_group: closes the group of copies that this thread has issued since the last commit.
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// cp.async.wait_group: waits until at most `groups` groups of this thread are in flight.
template <int groups>
DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

// ldmatrix.x4: loads four 8 x 8 matrices of 16-bit elements from shared memory. Lanes 8 i to 8 i + 7 supply the
// addresses of the rows of matrix i, 16 bytes each. to[i] of lane l receives two elements of matrix i: row l / 4,
// columns l % 4 * 2 and the next.
DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// ldmatrix.x4.trans: to[i] of lane l receives column l / 4, rows l % 4 * 2 and the next.
DEVICE void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// mma.m16n8k16: c [16, 8] += a [16, 16] b [16, 8], by one warp. The fragments of lane l:
//   a[0]        row l / 4, columns l % 4 * 2 and the next; a[1] is 8 rows below, a[2] 8 columns to the right, a[3] both
//   b[0]        column l / 4, rows l % 4 * 2 and the next; b[1] is 8 rows below
//   c[0], c[1]  row l / 4, columns l % 4 * 2 and the next; c[2], c[3] are 8 rows below
DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], c10::BFloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], c10::Half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// mma.m16n8k8 on TF32: c [16, 8] += a [16, 8] b [8, 8], by one warp. The fragments of lane l:
//   a[0]  row l / 4, column l % 4; a[1] is 8 rows below, a[2] 4 columns to the right, a[3] both
//   b[0]  column l / 4, row l % 4; b[1] is 4 rows below
//   c     as for m16n8k16
DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// mma.m8n8k4 on float64: c [8, 8] += a [8, 4] b [4, 8], by one warp. In lane l, a is row l / 4, column l % 4; b is
// column l / 4, row l % 4; c is row l / 4, columns l % 4 * 2 and the next.
DEVICE void multiply(double (&c)[2], double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(c[0]), "+d"(c[1])
               : "d"(a), "d"(b));
}

// Bit casts between float and uint32_t.
DEVICE uint32_t bits(float number) { return __float_as_uint(number); }
DEVICE float number(uint32_t bits) { return __uint_as_float(bits); }

// cvt.rna.tf32: rounds to the nearest TF32 value, ties away from zero. Returns it as an operand of mma.
DEVICE uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

}  // namespace torchconv::cuda::ptx

#endif
