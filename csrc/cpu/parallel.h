// Parallel loops on torch's thread pool, and flushing of subnormals. The thread pool and the 16-bit dtypes are all that
// the kernels use of torch.
#pragma once

#include <cstdint>

namespace torchconv::cpu {

// Multiplications per thread. A loop with fewer than this runs on the calling thread alone, since waking a second
// thread would cost more than it saves.
constexpr double work_per_thread = 1 << 15;

// The number of threads in torch's pool.
int64_t thread_count();

// Whether subnormals count as zeros within a loop.
enum class Subnormals : uint8_t { flush, keep };

// The type-erased form of parallel_for: calls call(body, i, worker) once for each i in [0, tasks).
void run_parallel(int64_t tasks, double work, int64_t workers,
                  void (*call)(const void* body, int64_t i, int64_t worker), const void* body, Subnormals subnormals);

// Calls body(i) once for each i in [0, tasks). `work` is the estimated cost of one task in multiplications, a double so
// that it cannot overflow.
//
// Each thread starts with a contiguous range of tasks, the same in every loop, so that its data may still be in its
// core's cache. A thread that has finished its range takes tasks from the others, so that a thread preempted by the
// operating system does not delay the loop. The result of a task does not depend on the thread that runs it.
//
// Subnormals are flushed unless the caller keeps them: they make a multiplication up to a hundred times slower.
template <class Body>
void parallel_for(int64_t tasks, double work, Subnormals subnormals, const Body& body) {
  const auto call = [](const void* body, int64_t i, int64_t) { (*static_cast<const Body*>(body))(i); };
  run_parallel(tasks, work, thread_count(), call, &body, subnormals);
}

template <class Body>
void parallel_for(int64_t tasks, double work, const Body& body) {
  parallel_for(tasks, work, Subnormals::flush, body);
}

// Calls body(i, worker), on at most `workers` threads, for memory that each of them has for itself: `worker` is below
// `workers`, and tasks of the same worker run one after the other on one thread.
template <class Body>
void parallel_for_workers(int64_t tasks, double work, int64_t workers, const Body& body) {
  const auto call = [](const void* body, int64_t i, int64_t worker) { (*static_cast<const Body*>(body))(i, worker); };
  run_parallel(tasks, work, workers, call, &body, Subnormals::flush);
}

}  // namespace torchconv::cpu
