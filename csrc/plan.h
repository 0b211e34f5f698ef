// The plan of one operator for one problem: everything that an implementation decides before it touches the tensors,
// such as the sizes of tiles and blocks.
#pragma once

#include "conv.h"

#include <cstddef>
#include <new>
#include <string>
#include <utility>

namespace torchconv {

// Holds the plan of any implementation without a heap allocation. Implementation::plan fills it, and the operators of
// the same implementation read it.
class AnyPlan {
 public:
  AnyPlan() = default;
  AnyPlan(const AnyPlan&) = delete;
  AnyPlan& operator=(const AnyPlan&) = delete;
  ~AnyPlan() { reset(); }

  // Constructs a plan in place of the previous one. `dtype` is that of the tensors: the type of a plan depends on it.
  template <class Plan, class... Arguments>
  Plan& emplace(Dtype dtype, Arguments&&... arguments) {
    static_assert(sizeof(Plan) <= capacity && alignof(Plan) <= alignof(std::max_align_t));
    reset();
    Plan* plan = new (storage_) Plan(std::forward<Arguments>(arguments)...);
    dtype_ = dtype;
    destroy_ = [](void* storage) { static_cast<Plan*>(storage)->~Plan(); };
    return *plan;
  }

  // The plan, which must be of this type.
  template <class Plan>
  const Plan& get() const {
    return *std::launder(reinterpret_cast<const Plan*>(storage_));
  }

  Dtype dtype() const { return dtype_; }

 private:
  static constexpr std::size_t capacity = 2560;  // the largest plan: the four phases of a grad_input with stride 2

  void reset() {
    if (destroy_) destroy_(storage_);
    destroy_ = nullptr;
  }

  alignas(std::max_align_t) std::byte storage_[capacity];
  Dtype dtype_{};
  void (*destroy_)(void* storage) = nullptr;
};

// "1 chunk", "2 chunks": for descriptions of plans.
std::string counted(int64_t count, const char* noun);

}  // namespace torchconv
