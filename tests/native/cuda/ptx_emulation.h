// The macros and functions of csrc/cuda/ptx.cuh, and CUDA's built-in variables, for the emulated GPU. Fragment layouts
// are documented in ptx.cuh.
#pragma once

#include "emulation.h"

#include <cmath>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstring>

#define DEVICE inline
#define UNROLL(...) for (__VA_ARGS__)
#define KERNEL(threads, blocks) void
#define SHARED static
#define SHARED_MEMORY(name) unsigned char* const name = emulation::shared
#define threadIdx (emulation::thread)
#define blockIdx (emulation::block)
#define gridDim (emulation::grid)

namespace torchconv::cuda {

using std::min;

inline void __syncthreads() { emulation::wait_for_block(); }

namespace ptx {

inline void copy_async(void* shared, const void* global, bool valid) { emulation::copy_async(shared, global, valid); }
inline void commit_copies() { emulation::commit_copies(); }
template <int groups>
void wait_copies() {
  emulation::wait_copies(groups);
}

inline uint32_t bits(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, 4);
  return bits;
}
inline float number(uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, 4);
  return number;
}

// The bits of one 16-bit element of an ldmatrix matrix, whose row address lane 8 * matrix + row has left in its slot.
inline uint32_t element(int matrix, int row, int column) {
  uint16_t bits;
  std::memcpy(&bits, static_cast<const char*>(emulation::slot(8 * matrix + row).address) + 2 * column, 2);
  return bits;
}

// ldmatrix.x4, with or without .trans.
template <bool transposed>
void load_matrices_(uint32_t (&to)[4], const void* row) {
  const int lane = threadIdx.x % 32;
  const auto* at = static_cast<const unsigned char*>(row);
  if (at < emulation::shared || reinterpret_cast<uintptr_t>(row) % 16 != 0)
    emulation::fail("ldmatrix of a bad address");
  emulation::slot(lane).address = row;
  emulation::wait_for_warp();
  for (int i = 0; i < 4; ++i)
    to[i] = transposed ? element(i, lane % 4 * 2, lane / 4) | element(i, lane % 4 * 2 + 1, lane / 4) << 16
                       : element(i, lane / 4, lane % 4 * 2) | element(i, lane / 4, lane % 4 * 2 + 1) << 16;
  emulation::wait_for_warp();
}
inline void load_matrices(uint32_t (&to)[4], const void* row) { load_matrices_<false>(to, row); }
inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) { load_matrices_<true>(to, row); }

// mma: the lanes exchange their fragments of a and b through their slots, and each lane accumulates its elements of c.
// a_at(row, k) and b_at(k, column) read one element from the slots. `depth` is the extent of k.
template <int depth, class A, class B>
void multiply_(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const A& a_at, const B& b_at) {
  const int lane = threadIdx.x % 32;
  std::copy(a, a + 4, emulation::slot(lane).words);
  std::copy(b, b + 2, emulation::slot(lane).words + 4);
  emulation::wait_for_warp();
  for (int e = 0; e < 4; ++e)
    for (int k = 0; k < depth; ++k) c[e] += a_at(lane / 4 + e / 2 * 8, k) * b_at(k, lane % 4 * 2 + e % 2);
  emulation::wait_for_warp();
}

// 16-bit element i of a 32-bit word.
template <class T>
float half_of(uint32_t word, int i) {
  const uint16_t bits = uint16_t(word >> 16 * i);
  T value;
  std::memcpy(&value, &bits, 2);
  return float(value);
}

template <class T>
void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T) {
  multiply_<16>(
      c, a, b,
      [](int row, int k) {
        return half_of<T>(emulation::slot(row % 8 * 4 + k % 8 / 2).words[row / 8 + k / 8 * 2], k % 2);
      },
      [](int k, int column) { return half_of<T>(emulation::slot(column * 4 + k % 8 / 2).words[4 + k / 8], k % 2); });
}

inline void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float) {
  constexpr uint32_t kept = ~0u << 13;  // TF32 ignores the low 13 bits
  multiply_<8>(
      c, a, b,
      [](int row, int k) { return number(emulation::slot(row % 8 * 4 + k % 4).words[row / 8 + k / 4 * 2] & kept); },
      [](int k, int column) { return number(emulation::slot(column * 4 + k % 4).words[4 + k / 4] & kept); });
}

inline void multiply(double (&c)[2], double a, double b) {
  const int lane = threadIdx.x % 32;
  emulation::slot(lane).numbers[0] = a, emulation::slot(lane).numbers[1] = b;
  emulation::wait_for_warp();
  for (int e = 0; e < 2; ++e)
    for (int k = 0; k < 4; ++k)
      c[e] += emulation::slot(lane / 4 * 4 + k).numbers[0] * emulation::slot((lane % 4 * 2 + e) * 4 + k).numbers[1];
  emulation::wait_for_warp();
}

inline uint32_t to_tf32(float value) {
  return std::isfinite(value) ? (bits(value) + (1u << 12)) & ~0u << 13 : bits(value);
}

}  // namespace ptx

}  // namespace torchconv::cuda
