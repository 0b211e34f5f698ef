#include "parallel.h"

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <vector>

namespace torchconv::cpu {

int64_t thread_count() {
  uint32_t count = 1;
  torch_get_num_threads(&count);
  return count;
}

void run_parallel(int64_t units, double work, void (*call)(const void* body, int64_t i), const void* body) {
  if (units * work > heaviest_loop.work) heaviest_loop = {units, units * work};
  const double useful = units * work / work_per_thread + 1;
  int64_t threads = useful < 2 ? 1 : thread_count();
  threads = threads < useful ? threads : static_cast<int64_t>(useful);
  threads = threads < units ? threads : units;
  if (threads <= 1) {
    for (int64_t i = 0; i < units; ++i) call(body, i);
    return;
  }

  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };
  struct Loop {
    void (*call)(const void* body, int64_t i);
    const void* body;
    std::vector<Range> ranges;
    std::exception_ptr error{};
    std::mutex mutex{};

    void run(size_t thread) {
      try {
        for (size_t i = 0; i < ranges.size(); ++i) {
          Range& range = ranges[(thread + i) % ranges.size()];
          for (int64_t unit; (unit = range.next++) < range.end;) call(body, unit);
        }
      } catch (...) {
        for (Range& range : ranges) range.next = range.end;
        const std::lock_guard<std::mutex> lock(mutex);
        error = std::current_exception();
      }
    }
  };
  Loop loop{call, body, std::vector<Range>(threads)};
  for (int64_t i = 0; i < threads; ++i) {
    loop.ranges[i].next = units / threads * i + std::min(i, units % threads);
    loop.ranges[i].end = units / threads * (i + 1) + std::min(i + 1, units % threads);
  }
  const auto run = [](int64_t begin, int64_t end, void* loop) {
    for (int64_t i = begin; i < end; ++i) static_cast<Loop*>(loop)->run(i);
  };
  if (torch_parallel_for(0, threads, 1, run, &loop) != 0)
    throw std::runtime_error("torchconv: torch's parallel loop failed");
  if (loop.error) std::rethrow_exception(loop.error);
}

}  // namespace torchconv::cpu
