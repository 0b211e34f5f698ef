// A test tensor that ends, or begins, at an inaccessible guard page, so that an access beyond it faults. The rest of
// its pages and the gaps of a strided tensor are filled with 0xff bytes, NaN in every dtype: reading them spoils the
// result, and is_clean() detects writes.
#pragma once

#include "../../csrc/operators.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <new>
#include <vector>

class Guarded {
 public:
  // Bytes of NaN between a tensor and the guard page after it. QEMU needs them: it reads the masked-out lanes of AVX2
  // masked loads, which processors do not.
  static inline size_t slack = 0;

  // `stride` is in elements and `item` in bytes. at_end: the tensor ends at a guard page; otherwise it begins at one.
  Guarded(const std::array<int64_t, 4>& size, const std::array<int64_t, 4>& stride, size_t item, bool at_end)
      : size_(size), stride_(stride), item_(item) {
    int64_t extent = 1;
    for (int d = 0; d < 4; ++d) extent += (size[d] - 1) * stride[d];
    if (size[0] * size[1] * size[2] * size[3] == 0) extent = 0;
    const size_t page = sysconf(_SC_PAGESIZE), bytes = extent * item;
    inside_ = (bytes + slack + page - 1) / page * page;
    mapped_ = inside_ + 2 * page;
    void* mapped = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    map_ = static_cast<char*>(mapped), begin_ = map_ + page;
    if (inside_ > 0 && mprotect(begin_, inside_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    std::memset(begin_, 0xff, inside_);
    data_ = at_end ? begin_ + inside_ - bytes - slack : begin_;
  }
  ~Guarded() { munmap(map_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  torchconv::View view() const { return {data_, 4, size_.data(), stride_.data()}; }
  void* data() const { return data_; }
  const std::array<int64_t, 4>& size() const { return size_; }

  // Calls body(address) for each element in the order of the logical dimensions.
  template <class Body>
  void each(const Body& body) const {
    for (int64_t a = 0; a < size_[0]; ++a)
      for (int64_t b = 0; b < size_[1]; ++b)
        for (int64_t c = 0; c < size_[2]; ++c)
          for (int64_t d = 0; d < size_[3]; ++d)
            body(data_ + (a * stride_[0] + b * stride_[1] + c * stride_[2] + d * stride_[3]) * int64_t(item_));
  }

  // A copy of all accessible bytes, those around the tensor included.
  std::vector<char> bytes() const { return {begin_, begin_ + inside_}; }

  // Whether all bytes outside the elements still have their initial value.
  bool is_clean() const {
    std::vector<char> rest = bytes();
    each([&](const char* element) { std::memset(&rest[element - begin_], 0xff, item_); });
    for (const char byte : rest)
      if (byte != char(0xff)) return false;
    return true;
  }

 private:
  std::array<int64_t, 4> size_, stride_;
  size_t item_, inside_, mapped_;
  char *map_, *begin_, *data_;
};
