// Randomized test of the kernels without torch and Python, for tools that check every memory access and for emulated
// processors: sanitizers, valgrind, qemu. It draws random problems up to the limits of what the kernels support, places
// operands and results at guard pages (guarded.h), and compares every implementation with the reference. Elements are
// small integers, so the comparison is exact. In some problems one element is infinite or NaN, and the results that it
// reaches must match, too.
//
//     kernels [PROBLEMS] [SEED] [PART OF A NAME] [SLACK, in bytes]
//
// PART selects the implementations whose names contain it; SLACK is Guarded::slack. Problem i depends on SEED + i
// alone, so `kernels 1 <number>` repeats the problem named in a message.
#include "../../csrc/cpu/scratch.h"
#include "../../csrc/operators.h"
#include "guarded.h"
#include "pool.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>

namespace {

using namespace torchconv;
using Four = std::array<int64_t, 4>;

// A random number generator: below(end) is in [0, end), of(values) is one of the values.
class Draw {
 public:
  explicit Draw(uint64_t seed) : engine_(seed) {}
  int64_t below(int64_t end) { return int64_t(engine_() % uint64_t(end)); }
  int64_t of(std::initializer_list<int64_t> values) { return values.begin()[below(int64_t(values.size()))]; }

 private:
  std::mt19937_64 engine_;
};

struct Problem {
  Dtype dtype;
  Four x, w, y;
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;

  Geometry geometry() const { return {stride, padding, dilation, groups}; }
};

// The number of multiplications.
double products(const Problem& p) { return double(p.y[0]) * p.y[2] * p.y[3] * p.w[0] * p.w[1] * p.w[2] * p.w[3]; }

// Gives one axis a stride or dilation of up to 2^61 and padding to match: few outputs, but extreme address arithmetic.
void draw_far(Draw& draw, Problem& p, int axis) {
  const int64_t taps = p.w[2 + axis], far = int64_t(1) << draw.of({20, 31, 32, 40, 58});
  int64_t *before = &p.padding[2 * axis], *after = before + 1;
  if (draw.below(2)) {
    p.stride[axis] = far * draw.of({1, 2, 8});
    *before = p.stride[axis] - draw.of({0, 0, 1, 2}), *after = draw.of({0, p.stride[axis]});
  } else {
    p.dilation[axis] = far;
    *before = far * draw.below(taps), *after = far * (taps - 1) - *before + draw.below(3);
  }
}

// Draws problems until one has fewer than 3 million multiplications.
Problem draw_problem(Draw& draw) {
  for (;;) {
    Problem p;
    p.dtype = Dtype(draw.below(4));
    p.groups = draw.of({1, 1, 1, 2, 3, 8, 16, 17, 32, 64});
    const int64_t c = p.groups > 3 ? draw.of({1, 1, 1, 2, 3, 4, 8})
                                   : draw.of({1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 40, 64, 65, 96, 200, 288});
    const int64_t k = p.groups > 3 ? (draw.below(2) ? c : draw.of({1, 1, 1, 2, 3, 4, 8}))
                                   : draw.of({1, 2, 3, 5, 8, 15, 16, 17, 32, 33, 48, 49, 64, 96, 144, 192, 300});
    p.w = {p.groups * k, c, draw.of({1, 2, 3, 3, 3, 5, 7}), draw.of({1, 2, 3, 3, 3, 5, 7})};
    if (draw.below(2)) p.w[3] = p.w[2];
    p.x = {draw.of({1, 1, 2, 3}), p.groups * c, 0, 0};
    const bool plain = draw.below(3) > 0;
    for (int axis = 0; axis < 2; ++axis) {
      p.stride.push_back(plain ? 1 : draw.of({1, 2, 2, 3, 5}));
      p.dilation.push_back(plain ? 1 : draw.of({1, 1, 2, 3}));
      for (int side = 0; side < 2; ++side)
        p.padding.push_back(draw.below(3) ? (p.w[2 + axis] - 1) / 2 : draw.of({0, 0, 1, 2, 5, 8}));
      if (draw.below(12) == 0) draw_far(draw, p, axis);
      const int64_t window = p.dilation[axis] * (p.w[2 + axis] - 1) + 1;
      const int64_t least = std::max<int64_t>(1, window - p.padding[2 * axis] - p.padding[2 * axis + 1]);
      p.x[2 + axis] = least + draw.of({0, 1, 2, 3, 5, 7, 8, 13, 15, 16, 17, 31, 33});
    }
    p.y = {p.x[0], p.w[0], 0, 0};
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t padded = p.x[2 + axis] + p.padding[2 * axis] + p.padding[2 * axis + 1];
      p.y[2 + axis] = (padded - p.dilation[axis] * (p.w[2 + axis] - 1) - 1) / p.stride[axis] + 1;
    }
    if (products(p) < 3e6) return p;
  }
}

std::string in_words(const Problem& p) {
  const auto list = [](const auto& values) { return to_string(values); };
  static const char* names[] = {"float64", "float32", "bfloat16", "float16"};
  return std::string(names[int(p.dtype)]) + " x " + list(p.x) + " w " + list(p.w) + " stride " + list(p.stride) +
         " padding " + list(p.padding) + " dilation " + list(p.dilation) + " groups " + std::to_string(p.groups);
}

size_t item_size(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

double read(Dtype dtype, const char* at) {
  switch (dtype) {
    case Dtype::float64: return *reinterpret_cast<const double*>(at);
    case Dtype::float32: return *reinterpret_cast<const float*>(at);
    case Dtype::bfloat16: return float(*reinterpret_cast<const c10::BFloat16*>(at));
    case Dtype::float16: return float(*reinterpret_cast<const c10::Half*>(at));
  }
  return 0;
}

void write(Dtype dtype, char* at, float value) {
  switch (dtype) {
    case Dtype::float64: *reinterpret_cast<double*>(at) = value; break;
    case Dtype::float32: *reinterpret_cast<float*>(at) = value; break;
    case Dtype::bfloat16: *reinterpret_cast<c10::BFloat16*>(at) = c10::BFloat16(value); break;
    case Dtype::float16: *reinterpret_cast<c10::Half*>(at) = c10::Half(value); break;
  }
}

Four strides_of(const Four& size, int64_t layout) {
  if (layout == 0) return {size[1] * size[2] * size[3], size[2] * size[3], size[3], 1};          // contiguous
  if (layout == 1) return {size[1] * size[2] * size[3], 1, size[3] * size[1], size[1]};          // channels_last
  if (layout == 2) return {size[1] * size[2] * size[3] * 3, size[2] * size[3] * 3, 1, size[2]};  // column-major, gaps
  if (layout == 3) return {0, size[2] * size[3], size[3], 1};                                    // batch stride 0
  return {1, 1, size[3] * 2, 2};  // windows of a vector, which overlap
}

// The layout of an operand that draws its layout independently of the others.
constexpr int64_t any = -1;

// A guarded tensor of random integers from -2 to 2, in layout `shared` or, if that is `any`, in a random one.
std::unique_ptr<Guarded> operand(Draw& draw, Dtype dtype, const Four& size, int64_t shared) {
  const int64_t layout = shared == any ? draw.below(5) : shared;
  auto tensor = std::make_unique<Guarded>(size, strides_of(size, layout), item_size(dtype), draw.below(3) > 0);
  tensor->each([&](char* at) { write(dtype, at, float(draw.below(5) - 2)); });
  return tensor;
}

// Sets one random element to infinity, -infinity or NaN.
void spoil(Draw& draw, Dtype dtype, const Guarded& tensor) {
  constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const auto& size = tensor.size();
  int64_t left = draw.below(size[0] * size[1] * size[2] * size[3]);
  const float value = draw.below(3) == 0 ? nan : draw.below(2) ? infinity : -infinity;
  tensor.each([&](char* at) {
    if (left-- == 0) write(dtype, at, value);
  });
}

// ---------------------------------------------------------------------------------------- running the implementations

// The current problem and implementation, for messages.
char where[1024] = "";

// Signal handler: prints `where`, then lets the signal terminate the process.
void on_fault(int signal) {
  static const char text[] = "\nfault in: ";
  (void)!::write(2, text, sizeof text - 1);
  (void)!::write(2, where, std::strlen(where));
  (void)!::write(2, "\n", 1);
  std::signal(signal, SIG_DFL);
  raise(signal);
}

struct Tally {
  std::map<std::string, int64_t> comparisons;
  int64_t failures = 0;
};

// One operator with its operands: a and b are the arguments in the order of the operator.
struct Operator {
  Op op;
  const char* name;
  const Guarded &a, &b;
  Call call;  // planned for the reference
  Epilogue epilogue;
  bool tf32;  // ignored on the CPU

  bool can_plan(const Implementation& row, AnyPlan& plan) const {
    Conv conv = call.conv;
    conv.device = row.device, conv.tf32 = tf32 && row.device == Device::cuda;
    return row.can_plan(conv, op, plan);
  }
  void run(const Implementation& row, const AnyPlan& plan, void* result) const {
    if (op == Op::forward) return row.forward(plan, a.data(), b.data(), result, epilogue);
    return (op == Op::grad_input ? row.grad_input : row.grad_weight)(plan, a.data(), b.data(), result);
  }
};

bool is_winograd(const Implementation& row) { return std::string(row.name).find("winograd") != std::string::npos; }

// The error allowed: none, since sums of small integers are exact, except for the transforms of Winograd.
double allowed(const Implementation& row, Dtype dtype, double largest) {
  if (!is_winograd(row)) return 0;
  return std::max(1.0, largest) * (dtype == Dtype::float64 ? 1e-12 : dtype == Dtype::float32 ? 1e-5 : 2e-2);
}

// Fills working memory of this thread with NaN, so that a result tells if a kernel reads what it did not write.
void spoil_scratch() {
  constexpr int64_t bytes = 1 << 20;
  cpu::Scratch scratch;
  std::memset(scratch.take<char>(bytes), 0xff, bytes);
}

// Runs every implementation that supports the problem and has `part` in its name, and compares it with the reference.
void compare(const Operator& what, Dtype dtype, uint64_t seed, const std::string& words, const std::string& part,
             bool at_end, Tally& tally) {
  std::vector<double> wanted;
  double largest = 0;
  std::vector<const Implementation*> rows = {what.call.implementation};  // the reference runs first
  for (const Implementation& row : implementations())
    if (&row != what.call.implementation) rows.push_back(&row);
  for (const Implementation* row : rows) {
    const bool is_reference = row == what.call.implementation;
    AnyPlan plan;
    if (!what.can_plan(*row, plan)) continue;
    if (!is_reference && std::string(row->name).find(part) == std::string::npos) continue;
    std::snprintf(where, sizeof where, "kernels 1 %llu: %s %s: %s", static_cast<unsigned long long>(seed), row->name,
                  what.name, words.c_str());
    const Guarded result(what.call.size, what.call.stride, item_size(dtype), at_end);
    const std::vector<char> a = what.a.bytes(), b = what.b.bytes();
    spoil_scratch();
    what.run(*row, plan, result.data());

    size_t i = 0;
    double difference = 0;
    result.each([&](const char* at) {
      const double found = read(dtype, at);
      if (is_reference) wanted.push_back(found);
      if (is_reference && std::isfinite(found)) largest = std::max(largest, std::abs(found));
      const double want = wanted[i++];
      const bool same = found == want || (std::isnan(found) && std::isnan(want));
      const double apart = same ? 0 : std::abs(found - want);
      difference = std::max(difference, std::isnan(apart) ? std::numeric_limits<double>::infinity() : apart);
    });
    const char* wrong = !(difference <= allowed(*row, dtype, largest)) ? "differs from the reference"
                        : !result.is_clean()                           ? "writes beside its result"
                        : what.a.bytes() != a || what.b.bytes() != b   ? "changes an operand"
                                                                       : nullptr;
    if (wrong) std::printf("%s %s (%g)\n", where, wrong, difference);
    tally.failures += wrong != nullptr;
    ++tally.comparisons[row->name];
  }
}

// Draws a problem from `seed` and runs all three operators on it.
void try_problem(uint64_t seed, const std::string& part, Tally& tally) {
  Draw draw(seed);
  const Problem p = draw_problem(draw);
  const std::string words = in_words(p), reference = "cpu.reference";
  const int64_t layout = draw.of({0, 1, any});
  const auto x = operand(draw, p.dtype, p.x, layout), w = operand(draw, p.dtype, p.w, layout),
             y = operand(draw, p.dtype, p.y, layout), bias = operand(draw, p.dtype, {1, 1, 1, p.w[0]}, any);
  pool_threads = uint32_t(draw.of({1, 2, 3, 4}));
  const bool at_end = draw.below(3) > 0;

  Epilogue epilogue;
  if (draw.below(2)) epilogue.bias = bias->data(), epilogue.bias_stride = bias->view().stride[3];
  epilogue.activation = draw.below(2) ? Activation::none : draw.below(2) ? Activation::relu : Activation::leaky_relu;
  epilogue.slope = 0.5;
  const bool tf32 = draw.below(2);
  // A spoiled y is not used in grad_weight: implementations differ where such an element meets padding, see
  // docs/numbers.md.
  const bool x_spoiled = draw.below(6) == 0, y_spoiled = !x_spoiled && draw.below(6) == 0;
  if (x_spoiled) spoil(draw, p.dtype, *x);
  if (y_spoiled) spoil(draw, p.dtype, *y);

  const std::array input_size{p.x[2], p.x[3]}, kernel_size{p.w[2], p.w[3]};
  const Geometry g = p.geometry();
  const Operator operators[] = {
      {Op::forward, "conv2d", *x, *w, plan_conv2d(p.dtype, x->view(), w->view(), g, reference), epilogue, tf32},
      {Op::grad_input,
       "conv2d_grad_input",
       *y,
       *w,
       plan_grad_input(p.dtype, y->view(), w->view(), input_size, g, reference),
       {},
       tf32},
      {Op::grad_weight,
       "conv2d_grad_weight",
       *x,
       *y,
       plan_grad_weight(p.dtype, x->view(), y->view(), kernel_size, g, reference),
       {},
       tf32},
  };
  for (const Operator& what : operators)
    if (what.op != Op::grad_weight || !y_spoiled) compare(what, p.dtype, seed, words, part, at_end, tally);
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t problems = argc > 1 ? std::atoll(argv[1]) : 1000;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  const std::string part = argc > 3 ? argv[3] : "";
  Guarded::slack = argc > 4 ? std::strtoull(argv[4], nullptr, 10) : 0;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // the sanitizers report faults
  for (int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE}) std::signal(signal, on_fault);
#endif
  Tally tally;
  for (int64_t i = 0; i < problems; ++i) try_problem(seed + i, part, tally);
  for (const auto& [name, count] : tally.comparisons) std::printf("%-26s %8lld\n", name.c_str(), (long long)count);
  std::printf("%lld problems, %lld failures\n", (long long)problems, (long long)tally.failures);
  return tally.failures != 0;
}
