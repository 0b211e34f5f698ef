// The scheduler of the emulated GPU: fibers for the threads of a block, barriers, and delayed asynchronous copies.
#include "emulation.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

namespace emulation {

Three thread, block, grid;
unsigned char* shared;

namespace {

enum class State { ready, at_warp, at_block, done };

// A pending cp.async of 16 bytes.
struct Copy {
  void* to;
  const void* from;
  bool valid;
};

// A thread of the current block, with its pending groups of copies.
struct Fiber {
  State state = State::ready;
  bool started = false;
  jmp_buf context;
  std::deque<std::vector<Copy>> groups{1};  // the last group is not committed yet
};

constexpr size_t stack_size = 256 << 10;
char* stacks = nullptr;  // reused by every block

std::vector<Fiber> fibers;
std::vector<Slot> slots;
jmp_buf scheduler;
const std::function<void()>* body_of_kernel;
bool copies_are_late = false;
int64_t shared_size = 0;

void perform(const Copy& copy) {
  if (copy.valid)
    std::memcpy(copy.to, copy.from, 16);
  else
    std::memset(copy.to, 0, 16);
}

// Suspends the current fiber in `state` and returns to the scheduler.
void yield(State state) {
  Fiber& fiber = fibers[thread.x];
  fiber.state = state;
  if (_setjmp(fiber.context) == 0) _longjmp(scheduler, 1);
}

// The entry point of every fiber.
void enter() {
  (*body_of_kernel)();
  fibers[thread.x].state = State::done;
  _longjmp(scheduler, 1);
}

// Runs fiber i until it yields or is done.
void resume(size_t i) {
  Fiber& fiber = fibers[i];
  thread.x = unsigned(i);
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.context, 1);
  fiber.started = true;
  ucontext_t start;
  getcontext(&start);
  start.uc_stack.ss_sp = stacks + i * stack_size, start.uc_stack.ss_size = stack_size, start.uc_link = nullptr;
  makecontext(&start, enter, 0);
  setcontext(&start);
}

// Releases the barrier `state` of fibers [begin, end) if all of them that are not done have reached it. Returns whether
// it released any.
bool release(size_t begin, size_t end, State state) {
  bool any = false;
  for (size_t i = begin; i < end; ++i) {
    if (fibers[i].state != state && fibers[i].state != State::done) return false;
    any |= fibers[i].state == state;
  }
  for (size_t i = begin; i < end; ++i)
    if (fibers[i].state == state) fibers[i].state = State::ready;
  return any;
}

// Runs one thread block. Fails if its threads deadlock, waiting at different barriers.
void run_block(int threads) {
  fibers.clear();
  fibers.resize(threads);
  slots.assign((threads + 31) / 32 * 32, {});
  std::memset(shared, 0xff, shared_size);
  for (;;) {
    bool progress = false;
    for (size_t i = 0; i < fibers.size(); ++i)
      if (fibers[i].state == State::ready) resume(i), progress = true;
    for (size_t warp = 0; warp < fibers.size(); warp += 32)
      progress |= release(warp, std::min(warp + 32, fibers.size()), State::at_warp);
    progress |= release(0, fibers.size(), State::at_block);
    bool done = true;
    for (const Fiber& fiber : fibers) done &= fiber.state == State::done;
    if (done) return;
    if (!progress) fail("threads wait for each other in different places");
  }
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "emulated GPU: %s\n", what);
  std::abort();
}

void run(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body) {
  constexpr int most = 1024;
  if (threads < 1 || threads > most) fail("a launch with more than 1,024 threads in a block, or none");
  if (shared_bytes > 160 << 10) fail("a launch with more shared memory than sm_80 has");
  if (!stacks) {
    void* mapped = mmap(nullptr, most * stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) fail("no memory for stacks");
    stacks = static_cast<char*>(mapped);
  }
  // The 16 spare bytes leave room to align the shared memory to 16 bytes, whatever alignment the allocation has. The
  // allocation ends at most 16 bytes after the shared memory, so that valgrind reports accesses further beyond it.
  const auto memory = std::make_unique<unsigned char[]>(shared_bytes + 16);
  shared = memory.get() + (16 - reinterpret_cast<uintptr_t>(memory.get()) % 16) % 16;
  shared_size = shared_bytes;
  body_of_kernel = &body;
  if (shared_bytes > 0) copies_are_late = !copies_are_late;
  grid.x = unsigned(blocks);
  for (block.x = 0; block.x < grid.x; ++block.x) run_block(threads);
}

void wait_for_block() { yield(State::at_block); }
void wait_for_warp() { yield(State::at_warp); }

Slot& slot(int lane) { return slots[thread.x / 32 * 32 + lane]; }

void copy_async(void* to, const void* from, bool valid) {
  auto* at = static_cast<unsigned char*>(to);
  if (at < shared || at + 16 > shared + shared_size) fail("cp.async beyond shared memory");
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    fail("cp.async of 16 bytes that are not aligned");
  if (copies_are_late)
    fibers[thread.x].groups.back().push_back({to, from, valid});
  else
    perform({to, from, valid});
}

void commit_copies() { fibers[thread.x].groups.emplace_back(); }

void wait_copies(int groups) {
  auto& staging = fibers[thread.x].groups;
  while (int(staging.size()) - 1 > groups) {
    for (const Copy& copy : staging.front()) perform(copy);
    staging.pop_front();
  }
}

}  // namespace emulation
