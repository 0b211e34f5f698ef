// An emulated GPU for kernels compiled by the host compiler. Thread blocks run one after the other. Each thread of a
// block is a fiber, which runs until it waits at a barrier.
//
// The emulation is adversarial where the hardware gives no guarantee. Shared memory starts as NaN. Of the launches with
// shared memory, every other one performs asynchronous copies immediately and the rest as late as allowed.
#pragma once

#include <cstdint>
#include <functional>

namespace emulation {

// The built-in variables threadIdx, blockIdx and gridDim.
struct Three {
  unsigned x = 0, y = 0, z = 0;
};

extern Three thread, block, grid;
extern unsigned char* shared;  // dynamic shared memory of the current thread block

// Runs a kernel body on `blocks` thread blocks of `threads` threads, with `shared_bytes` of dynamic shared memory.
void run(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body);

// Barriers of the current thread: __syncthreads(), and one for the lanes of its warp.
void wait_for_block();
void wait_for_warp();

// One lane's values for the other lanes of its warp. The lanes write their slots, wait, read, and wait again before the
// slots are reused.
struct Slot {
  uint32_t words[8];
  double numbers[2];
  const void* address;
};
Slot& slot(int lane);  // of the current warp

// cp.async, cp.async.commit_group and cp.async.wait_group of the current thread.
void copy_async(void* to, const void* from, bool valid);
void commit_copies();
void wait_copies(int groups);

// Prints the message and aborts.
[[noreturn]] void fail(const char* what);

}  // namespace emulation
