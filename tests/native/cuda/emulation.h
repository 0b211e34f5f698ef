// A GPU for kernels that a C++ compiler has compiled: blocks one after the other, each thread of a block a fiber of its
// own, which runs until it waits for the others. What a kernel may not rely on is as bad as can be: shared memory
// begins as NaN, and asynchronous copies happen at once in every other launch that has any, and as late as may be in
// the rest.
#pragma once

#include <cstdint>
#include <functional>

namespace emulation {

struct Three {
  unsigned x = 0, y = 0, z = 0;
};

extern Three thread, block, grid;
extern unsigned char* shared;  // of the block that runs

// The kernel's body on so many blocks of so many threads, with so many bytes of shared memory.
void run(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body);

void wait_for_block();
void wait_for_warp();

// Where the lanes of the current warp leave values for each other; valid until the next wait.
struct Slot {
  uint32_t words[8];
  double numbers[2];
  const void* address;
};
Slot& slot(int lane);  // of the current warp

void copy_async(void* to, const void* from, bool valid);
void commit_copies();
void wait_copies(int groups);

[[noreturn]] void fail(const char* what);

}  // namespace emulation
