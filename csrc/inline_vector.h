// A vector whose first `capacity` elements lie in the object itself: short lists need no heap allocation.
#pragma once

#include <array>
#include <cstddef>
#include <type_traits>
#include <vector>

namespace torchconv {

template <class T, std::size_t capacity>
class InlineVector {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  void push_back(const T& value) {
    if (heap_.empty() && size_ == capacity) heap_.assign(inline_.begin(), inline_.end());
    if (size_ < capacity) {
      inline_[size_] = value;
    } else {
      heap_.push_back(value);
    }
    ++size_;
  }

  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const T* data() const { return heap_.empty() ? inline_.data() : heap_.data(); }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }
  const T& operator[](std::size_t i) const { return data()[i]; }
  const T& front() const { return *data(); }
  const T& back() const { return data()[size_ - 1]; }

 private:
  std::array<T, capacity> inline_;
  std::size_t size_ = 0;
  std::vector<T> heap_;  // all elements, once there are more than `capacity`
};

}  // namespace torchconv
