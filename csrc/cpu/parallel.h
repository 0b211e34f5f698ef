// Loops over torch's own thread pool. The kernels see no more of torch than this, and its 16-bit numbers.
#pragma once

#include <cstdint>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace torchconv::cpu {

// A second thread is woken only for more than this many multiplications: below, waking it costs more than it brings.
constexpr double work_per_thread = 1 << 15;

int64_t thread_count();

// Of the loops that this thread has begun, the one with the most work, for those who ask how well it can be shared.
struct HeaviestLoop {
  int64_t units = 0;
  double work = 0;  // of all units, in multiplications
};

inline thread_local HeaviestLoop heaviest_loop;

// Calls call(body, i) once for each i in [0, units), as parallel_for.
void run_parallel(int64_t units, double work, void (*call)(const void* body, int64_t i), const void* body);

// Calls body(i) once for each i in [0, units); `work` is the cost of one unit in multiplications (a double: it is an
// estimate, and cannot overflow). Each thread begins with a range of its own, the same in every loop, so that what it
// reads is where it left it; when done, it helps the others, so that a thread that is held up elsewhere delays no one.
// Which thread runs a unit never changes its result.
template <class Body>
void parallel_for(int64_t units, double work, const Body& body) {
  run_parallel(units, work, [](const void* body, int64_t i) { (*static_cast<const Body*>(body))(i); }, &body);
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
