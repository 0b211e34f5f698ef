// Scratch memory and device queries of csrc/cuda/launch.cuh and registry.cuh for the emulated GPU, which uses host
// memory. Scratch memory ends at a guard page, like the tensors.
#include "../../../csrc/cuda/device.h"
#include "../../../csrc/cuda/launch.cuh"
#include "../../../csrc/cuda/registry.cuh"
#include "../guarded.h"

#include <map>
#include <memory>

namespace torchconv::cuda {

namespace {

std::map<void*, std::unique_ptr<Guarded>> all_scratch;

}  // namespace

Scratch::Scratch(int64_t bytes) {
  const std::array<int64_t, 4> size{1, 1, 1, (bytes + 15) / 16 * 16}, stride{0, 0, 0, 1};
  auto memory = std::make_unique<Guarded>(size, stride, 1, true);
  data_ = memory->data();
  all_scratch[data_] = std::move(memory);
}

Scratch::~Scratch() { all_scratch.erase(data_); }

bool has_sm80() { return true; }

}  // namespace torchconv::cuda
