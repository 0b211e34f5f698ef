// Loops over torch's own thread pool. The kernels see no more of torch than this, and its 16-bit numbers.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <stdexcept>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace torchconv::cpu {

// A second thread is woken only for more than this many multiplications: below, waking it costs more than it brings.
constexpr double work_per_thread = 1 << 15;

inline int64_t thread_count() {
  uint32_t count = 1;
  torch_get_num_threads(&count);
  return count;
}

// Calls body(i) once for each i in [0, units); `work` is the cost of one unit in multiplications (a double: it is an
// estimate, and cannot overflow). Threads take the next unit when they are done with one, so that a thread that is
// held up elsewhere delays no other. Which thread runs a unit never changes its result.
template <class Body>
void parallel_for(int64_t units, double work, const Body& body) {
  struct Loop {
    const Body& body;
    int64_t units;
    std::atomic<int64_t> next{0};
    std::exception_ptr error{};
    std::mutex mutex{};

    void run() {
      try {
        for (int64_t i; (i = next++) < units;) body(i);
      } catch (...) {
        next = units;
        const std::lock_guard<std::mutex> lock(mutex);
        error = std::current_exception();
      }
    }
  };
  const double useful = units * work / work_per_thread + 1;
  int64_t threads = useful < 2 ? 1 : thread_count();
  threads = threads < useful ? threads : static_cast<int64_t>(useful);
  threads = threads < units ? threads : units;
  if (threads <= 1) {
    for (int64_t i = 0; i < units; ++i) body(i);
    return;
  }
  Loop loop{body, units};
  const auto run = [](int64_t begin, int64_t end, void* loop) {
    for (int64_t i = begin; i < end; ++i) static_cast<Loop*>(loop)->run();
  };
  if (torch_parallel_for(0, threads, 1, run, &loop) != 0)
    throw std::runtime_error("torchconv: torch's parallel loop failed");
  if (loop.error) std::rethrow_exception(loop.error);
}

// While it lives, subnormal numbers count as zeros on this thread: they make a multiplication up to a hundred times
// slower.
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

}  // namespace torchconv::cpu
