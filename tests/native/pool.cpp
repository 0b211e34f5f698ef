// What the kernels ask torch for. Its thread pool, as far as csrc/cpu/parallel.h uses it, is one of plain threads here:
// every tool understands those.
#include "pool.h"

#include "../../csrc/precision.h"

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

AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc body, void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = begin + 1; i < end; ++i) threads.emplace_back(body, i, i + 1, context);
  body(begin, begin + 1, context);
  for (std::thread& thread : threads) thread.join();
  return 0;
}

}  // extern "C"
