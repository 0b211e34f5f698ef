// One function for each instruction of the PTX ISA that C++ has no words for, as its manual describes it
// (https://docs.nvidia.com/cuda/parallel-thread-execution). All of them need sm_80.
//
// tests/native/cuda has the same functions for an emulated device.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

#ifndef __CUDACC__
#include "ptx_emulation.h"
#else

#define DEVICE __device__ __forceinline__
#define KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)  // blocks on a processor at least
#define SHARED __shared__
#define SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]  // as much as the launch says
#define UNROLL(...) _Pragma("unroll") for (__VA_ARGS__)

namespace torchconv::cuda::ptx {

DEVICE uint32_t shared_address(const void* shared) { return static_cast<uint32_t>(__cvta_generic_to_shared(shared)); }

// cp.async: 16 bytes from global to shared memory, both aligned; zeros where `valid` is false, and nothing is read
// then, wherever the address is.
DEVICE void copy_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}

// Closes a group of copies.
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most so many groups of this thread are under way.
template <int groups>
DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

// ldmatrix: four 8 x 8 matrices of 16 bits each. Lanes 8 i to 8 i + 7 give the addresses of the rows of matrix i, 16
// bytes each. Of each matrix, lane l receives the two elements of row l / 4 from column l % 4 * 2 on.
DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, transposed: lane l receives the elements of column l / 4 from row l % 4 * 2 on.
DEVICE void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// mma.m16n8k16: c [16, 8] += a [16, 16] b [16, 8], of a warp. With l = lane: a[0] is row l / 4, columns l % 4 * 2 and
// the next; a[1] 8 rows further, a[2] 8 columns further, a[3] both. b[0] is column l / 4, rows l % 4 * 2 and the next;
// b[1] 8 rows further. c[0], c[1] are row l / 4, columns l % 4 * 2 and the next; c[2], c[3] 8 rows further.
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

// mma.m16n8k8 of TF32: c [16, 8] += a [16, 8] b [8, 8]. a[0] is row l / 4, column l % 4; a[1] 8 rows further, a[2] 4
// columns further, a[3] both. b[0] is column l / 4, row l % 4; b[1] 4 rows further. c as above.
DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// mma.m8n8k4 of float64: c [8, 8] += a [8, 4] b [4, 8]. a is row l / 4, column l % 4; b is column l / 4, row l % 4; c
// is row l / 4, columns l % 4 * 2 and the next.
DEVICE void multiply(double (&c)[2], double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(c[0]), "+d"(c[1])
               : "d"(a), "d"(b));
}

DEVICE uint32_t bits(float number) { return __float_as_uint(number); }
DEVICE float number(uint32_t bits) { return __uint_as_float(bits); }

// The nearest number of TF32, ties away from zero.
DEVICE uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

}  // namespace torchconv::cuda::ptx

#endif
