// Stands in for the functions of torch that the kernels call. The part of its thread pool that csrc/cpu/parallel.h uses
// is replaced by plain std::threads, which every tool understands.
#include "pool.h"

#include "../../csrc/torch/tf32.h"

#include <torch/csrc/stable/c/shim.h>

#include <thread>
#include <vector>

uint32_t pool_threads = 1;

bool torchconv::allows_tf32() { return false; }

extern "C" {

AOTITorchError torch_get_num_threads(uint32_t* count) {
  *count = pool_threads;
  return 0;
}

// Runs each index in [begin, end) on a separate thread, the first on the calling thread. Ignores the grain size.
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc body, void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = begin + 1; i < end; ++i) threads.emplace_back(body, i, i + 1, context);
  body(begin, begin + 1, context);
  for (std::thread& thread : threads) thread.join();
  return 0;
}

}  // extern "C"
