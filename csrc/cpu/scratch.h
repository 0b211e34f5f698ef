// Scratch memory of the CPU kernels. Each thread reserves one region of address space, touches its pages as they are
// needed and reuses them in every later call. Memory use does not grow with the number of shapes, and a page causes at
// most one page fault.
#pragma once

#include <cstddef>
#include <cstdint>

namespace torchconv::cpu {

// The size of one thread's region in bytes. The kernels bound their plans to stay below it.
constexpr size_t scratch_per_thread = size_t(32) << 20;

// Bytes touched so far, summed over all live threads.
size_t scratch_bytes();

// Bytes needed since the previous call of this function: the peak use of each thread, summed over the threads.
size_t take_scratch_need();

// Stack allocation from the calling thread's region. The destructor frees everything that the object has handed out, so
// objects must be destroyed in reverse order of construction. take() throws std::bad_alloc if the region is full or
// cannot be reserved.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // `count` uninitialized elements, aligned to 64 bytes and followed by at least 256 readable bytes.
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(bytes(size_t(count) * sizeof(T)));
  }

 private:
  void* bytes(size_t size);

  size_t before_;
};

}  // namespace torchconv::cpu
