// parallel_for on torch's thread pool: one range of tasks per thread, with work stealing.
#include "parallel.h"

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace torchconv::cpu {

int64_t thread_count() {
  uint32_t count = 1;
  torch_get_num_threads(&count);
  return count;
}

namespace {

// Treats subnormals as zeros on this thread for the lifetime of the object (FTZ and DAZ, bits 15 and 6 of MXCSR).
// Does nothing on architectures other than x86.
class FlushSubnormals {
#if defined(__SSE__)
 public:
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  unsigned before_;
#endif
};

}  // namespace

void run_parallel(int64_t tasks, double work, int64_t workers,
                  void (*call)(const void* body, int64_t i, int64_t worker), const void* body, Subnormals subnormals) {
  const double useful = tasks * work / work_per_thread + 1;
  int64_t threads = useful < 2 ? 1 : workers;
  threads = threads < useful ? threads : static_cast<int64_t>(useful);
  threads = threads < tasks ? threads : tasks;
  if (threads <= 1) {
    std::optional<FlushSubnormals> flush;
    if (subnormals == Subnormals::flush) flush.emplace();
    for (int64_t i = 0; i < tasks; ++i) call(body, i, 0);
    return;
  }

  // The tasks that one thread starts with, alone on its cache line. Any thread may take the next one.
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };
  struct Loop {
    void (*call)(const void* body, int64_t i, int64_t worker);
    const void* body;
    Subnormals subnormals;
    std::vector<Range> ranges;
    std::exception_ptr error{};
    std::mutex mutex{};

    // Runs the tasks of range `worker`, then those left in the other ranges. After an exception no new task starts.
    void run(size_t worker) {
      std::optional<FlushSubnormals> flush;
      if (subnormals == Subnormals::flush) flush.emplace();
      try {
        for (size_t i = 0; i < ranges.size(); ++i) {
          Range& range = ranges[(worker + i) % ranges.size()];
          for (int64_t task; (task = range.next++) < range.end;) call(body, task, worker);
        }
      } catch (...) {
        for (Range& range : ranges) range.next = range.end;
        const std::lock_guard<std::mutex> lock(mutex);
        error = std::current_exception();
      }
    }
  };
  Loop loop{call, body, subnormals, std::vector<Range>(threads)};
  for (int64_t i = 0; i < threads; ++i) {
    loop.ranges[i].next = tasks / threads * i + std::min(i, tasks % threads);
    loop.ranges[i].end = tasks / threads * (i + 1) + std::min(i + 1, tasks % threads);
  }
  const auto run = [](int64_t begin, int64_t end, void* loop) {
    for (int64_t i = begin; i < end; ++i) static_cast<Loop*>(loop)->run(i);
  };
  if (torch_parallel_for(0, threads, 1, run, &loop) != 0)
    throw std::runtime_error("torchconv: torch's parallel loop failed");
  if (loop.error) std::rethrow_exception(loop.error);
}

}  // namespace torchconv::cpu
