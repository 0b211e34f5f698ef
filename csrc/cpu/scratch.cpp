// The per-thread regions behind Scratch, and the counters of touched and needed bytes.
#include "scratch.h"

#include <atomic>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace torchconv::cpu {

namespace {

std::atomic<size_t> touched{0};

// `needed` counts since the last call of take_scratch_need; `epoch` counts those calls.
std::atomic<size_t> needed{0}, epoch{0};

constexpr size_t huge_page = size_t(2) << 20;

// One thread's region. `used` is the top of the stack, `most` its highest value so far, `need` its highest value in
// `epoch`; all three are byte offsets from `base`.
struct Region {
  char* base = nullptr;
  size_t used = 0, most = 0;
  size_t need = 0, epoch = 0;

  void reserve() {
#if defined(__linux__)
    // Reserves address space only. The kernel supplies a page on the first write, a huge page where it can.
    void* mapped = mmap(nullptr, scratch_per_thread + huge_page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    const size_t address = reinterpret_cast<size_t>(mapped), aligned = (address + huge_page - 1) & ~(huge_page - 1);
    base = reinterpret_cast<char*>(aligned);
    madvise(base, scratch_per_thread, MADV_HUGEPAGE);
    map_ = mapped;
#else
    base = static_cast<char*>(std::aligned_alloc(4096, scratch_per_thread));
    if (!base) throw std::bad_alloc();
#endif
  }

  ~Region() {
    touched -= most;
#if defined(__linux__)
    if (map_) munmap(map_, scratch_per_thread + huge_page);
#else
    std::free(base);
#endif
  }

  void* map_ = nullptr;
};

thread_local Region region;

}  // namespace

size_t scratch_bytes() { return touched; }

size_t take_scratch_need() {
  ++epoch;
  return needed.exchange(0);
}

Scratch::Scratch() : before_(region.used) {}

Scratch::~Scratch() { region.used = before_; }

void* Scratch::bytes(size_t size) {
  Region& r = region;
  if (!r.base) r.reserve();
  const size_t end = r.used + ((size + 256 + 63) & ~size_t(63));
  if (end > scratch_per_thread) throw std::bad_alloc();
  void* start = r.base + r.used;
  r.used = end;
  if (end > r.most) {
    touched += end - r.most;
    r.most = end;
  }
  if (const size_t now = epoch; r.epoch != now) r.epoch = now, r.need = 0;
  if (end > r.need) {
    needed += end - r.need;
    r.need = end;
  }
  return start;
}

}  // namespace torchconv::cpu
