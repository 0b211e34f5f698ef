// Loops over torch's own thread pool. The kernels see no more of torch than this, and its 16-bit numbers.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <vector>

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

// Of the loops that this thread has begun, the one with the most work, for those who ask how well it can be shared.
struct HeaviestLoop {
  int64_t units = 0;
  double work = 0;  // of all units, in multiplications
};

inline thread_local HeaviestLoop heaviest_loop;

// Calls body(i) once for each i in [0, units); `work` is the cost of one unit in multiplications (a double: it is an
// estimate, and cannot overflow). Each thread begins with a range of its own, the same in every loop, so that what it
// reads is where it left it; when done, it helps the others, so that a thread that is held up elsewhere delays no one.
// Which thread runs a unit never changes its result.
template <class Body>
void parallel_for(int64_t units, double work, const Body& body) {
  if (units * work > heaviest_loop.work) heaviest_loop = {units, units * work};
  const double useful = units * work / work_per_thread + 1;
  int64_t threads = useful < 2 ? 1 : thread_count();
  threads = threads < useful ? threads : static_cast<int64_t>(useful);
  threads = threads < units ? threads : units;
  if (threads <= 1) {
    for (int64_t i = 0; i < units; ++i) body(i);
    return;
  }

  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };
  struct Loop {
    const Body& body;
    std::vector<Range> ranges;
    std::exception_ptr error{};
    std::mutex mutex{};

    void run(size_t thread) {
      try {
        for (size_t i = 0; i < ranges.size(); ++i) {
          Range& range = ranges[(thread + i) % ranges.size()];
          for (int64_t unit; (unit = range.next++) < range.end;) body(unit);
        }
      } catch (...) {
        for (Range& range : ranges) range.next = range.end;
        const std::lock_guard<std::mutex> lock(mutex);
        error = std::current_exception();
      }
    }
  };
  Loop loop{body, std::vector<Range>(threads)};
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
