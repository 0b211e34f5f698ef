// The kernels' working memory: one region of addresses per thread, taken once, touched page by page as it is needed and
// used again by every later call. Nothing grows with the number of shapes, and no page is touched for the first time
// twice.
#pragma once

#include <cstddef>
#include <cstdint>

namespace torchconv::cpu {

// What one thread may hold. Plans stay below: see the bounds in the kernels.
constexpr size_t scratch_per_thread = size_t(32) << 20;

// Bytes touched so far by all threads that are alive.
size_t scratch_bytes();

// Bytes that all threads have needed since the last call: the sum of what each one held at its most.
size_t take_scratch_need();

// A stack of the calling thread's memory; what a Scratch has handed out is free again when it dies. Throws
// std::bad_alloc if the system refuses the memory.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // `count` elements, aligned to 64 bytes, with at least 256 readable bytes behind them. Not initialized.
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(bytes(size_t(count) * sizeof(T)));
  }

 private:
  void* bytes(size_t size);

  size_t before_;
};

}  // namespace torchconv::cpu
