// Loops over torch's own thread pool. The kernels see no more of torch than this, and its 16-bit numbers.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstdint>
#include <stdexcept>

namespace torchconv::cpu {

// A second thread is woken only for more than this many multiplications: below, waking it costs more than it brings.
constexpr double work_per_thread = 1 << 15;

// Calls body(i) once for each i in [0, units); `work` is the cost of one unit in multiplications (a double: it is an
// estimate, and cannot overflow). Which thread runs a unit never changes its result. The body must not throw.
template <class Body>
void parallel_for(int64_t units, double work, const Body& body) {
  const int64_t grain = work < work_per_thread ? static_cast<int64_t>(work_per_thread / (work + 1)) + 1 : 1;
  auto run = [](int64_t begin, int64_t end, void* context) {
    for (int64_t i = begin; i < end; ++i) (*static_cast<const Body*>(context))(i);
  };
  if (torch_parallel_for(0, units, grain, run, const_cast<Body*>(&body)) != 0)
    throw std::runtime_error("torchconv: torch's parallel loop failed");
}

}  // namespace torchconv::cpu
