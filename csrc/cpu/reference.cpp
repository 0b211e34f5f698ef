// cpu.reference: the three operators as plain loops. It specifies the other implementations, is the oracle of their
// tests, and handles the problems that they decline. It accepts any dtype, geometry and strides on any machine.
//
// A task computes one row of the result, in blocks of 64 adjacent elements with one accumulator each. Accumulators are
// double for float64 and float otherwise. The order of accumulation is fixed and does not depend on the number of
// threads.
#include "reference.h"

#include "../epilogue.h"
#include "parallel.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <type_traits>

namespace torchconv::cpu {

namespace {

constexpr int64_t block_size = 64;  // accumulators of a block of adjacent elements

template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The two inner loops. The contiguous case stands apart so that the compiler vectorizes it; the terms and their order
// are the same in both cases.

// acc[i * acc_step] += weight * values[i * step]
template <class T>
void accumulate(Acc<T>* __restrict acc, int64_t acc_step, Acc<T> weight, const T* __restrict values, int64_t step,
                int64_t count) {
  if (acc_step == 1 && step == 1)
    for (int64_t i = 0; i < count; ++i) acc[i] += weight * Acc<T>(values[i]);
  else
    for (int64_t i = 0; i < count; ++i) acc[i * acc_step] += weight * Acc<T>(values[i * step]);
}

// acc[i] += a[i * a_step] * b[i * b_step]
template <class T>
void multiply_accumulate(Acc<T>* __restrict acc, const T* __restrict a, int64_t a_step, const T* __restrict b,
                         int64_t b_step, int64_t count) {
  if (a_step == 1 && b_step == 1)
    for (int64_t i = 0; i < count; ++i) acc[i] += Acc<T>(a[i]) * Acc<T>(b[i]);
  else
    for (int64_t i = 0; i < count; ++i) acc[i] += Acc<T>(a[i * a_step]) * Acc<T>(b[i * b_step]);
}

// The distance in x, in elements, between the inputs of adjacent outputs. 1 for a single output, whose unused step
// might overflow.
int64_t step_in_x(const Conv& conv, int64_t count) { return count > 1 ? conv.cols.stride * conv.x.w : 1; }

// y[n, k, p, q] = sum over c, r, s of x[n, c, p * stride + r * dilation - pad, ...] * w[k, c, r, s], then the epilogue
template <class T>
void forward(const Conv& conv, const T* x, const T* w, T* y, const Epilogue& epilogue) {
  const int64_t N = conv.N, K = conv.K, c_end = conv.C_per_group(), k_per_group = conv.K_per_group();
  const Axis &rows = conv.rows, &cols = conv.cols;
  const Strides &xs = conv.x, &ws = conv.w, &ys = conv.y;
  const auto* bias = static_cast<const T*>(epilogue.bias);

  const double work = double(c_end) * rows.kernel * cols.kernel * cols.out;
  parallel_for(N * K * rows.out, work, Subnormals::keep, [&](int64_t task) {
    const int64_t p = task % rows.out, k = task / rows.out % K, n = task / rows.out / K, group = k / k_per_group;
    const T* x_group = x + n * xs.n + group * c_end * xs.c;
    T* y_row = y + n * ys.n + k * ys.c + p * ys.h;
    for (int64_t q0 = 0; q0 < cols.out; q0 += block_size) {
      const int64_t q1 = std::min(q0 + block_size, cols.out);
      Acc<T> acc[block_size] = {};
      for (int64_t s = 0; s < cols.kernel; ++s) {
        const int64_t q = std::max(q0, cols.first(s, 0)), end = std::min(q1, cols.first(s, cols.in));
        if (q >= end) continue;
        for (int64_t r = 0; r < rows.kernel; ++r) {
          const int64_t h = rows.position(p, r);
          if (h < 0 || h >= rows.in) continue;
          const T* x_row = x_group + h * xs.h + cols.position(q, s) * xs.w;
          const T* taps = w + k * ws.n + r * ws.h + s * ws.w;
          for (int64_t c = 0; c < c_end; ++c)
            accumulate(acc + (q - q0), 1, taps[c * ws.c], x_row + c * xs.c, step_in_x(conv, end - q), end - q);
        }
      }
      const Acc<T> b = bias ? Acc<T>(bias[k * epilogue.bias_stride]) : Acc<T>(0);
      for (int64_t q = q0; q < q1; ++q)
        y_row[q * ys.w] = T(activate(epilogue.activation, acc[q - q0] + b, Acc<T>(epilogue.slope)));
    }
  });
}

// x[n, c, h, w] = sum over k, r, s of y[n, k, p, q] * w[k, c, r, s], over the p and q whose tap r, s reads h, w
template <class T>
void grad_input(const Conv& conv, const T* y, const T* w, T* x) {
  const int64_t N = conv.N, C = conv.C, c_per_group = conv.C_per_group(), k_end = conv.K_per_group();
  const Axis &rows = conv.rows, &cols = conv.cols;
  const Strides &xs = conv.x, &ws = conv.w, &ys = conv.y;

  const double work = double(k_end) * rows.kernel * cols.kernel * cols.out;
  parallel_for(N * C * rows.in, work, Subnormals::keep, [&](int64_t task) {
    const int64_t h = task % rows.in, channel = task / rows.in % C, n = task / rows.in / C;
    const int64_t group = channel / c_per_group, c = channel % c_per_group;
    T* x_row = x + n * xs.n + channel * xs.c + h * xs.h;
    for (int64_t w0 = 0; w0 < cols.in; w0 += block_size) {
      const int64_t w1 = std::min(w0 + block_size, cols.in);
      Acc<T> acc[block_size] = {};
      for (int64_t s = 0; s < cols.kernel; ++s) {
        const int64_t q = cols.first(s, w0), end = cols.first(s, w1);
        if (q >= end) continue;
        for (int64_t r = 0; r < rows.kernel; ++r) {
          const int64_t p = rows.first(r, h);
          if (p == rows.out || rows.position(p, r) != h) continue;
          const T* y_row = y + n * ys.n + p * ys.h + q * ys.w;
          const T* taps = w + c * ws.c + r * ws.h + s * ws.w;
          for (int64_t k = group * k_end; k < (group + 1) * k_end; ++k)
            accumulate(acc + (cols.position(q, s) - w0), cols.stride, taps[k * ws.n], y_row + k * ys.c, ys.w, end - q);
        }
      }
      for (int64_t i = w0; i < w1; ++i) x_row[i * xs.w] = T(acc[i - w0]);
    }
  });
}

// w[k, c, r, s] = sum over n, p, q of x[n, c, p * stride + r * dilation - pad, ...] * y[n, k, p, q]
template <class T>
void grad_weight(const Conv& conv, const T* x, const T* y, T* w) {
  const int64_t N = conv.N, K = conv.K, c_per_group = conv.C_per_group(), k_per_group = conv.K_per_group();
  const Axis &rows = conv.rows, &cols = conv.cols;
  const Strides &xs = conv.x, &ws = conv.w, &ys = conv.y;

  const double work = double(N) * rows.out * cols.out * cols.kernel;
  parallel_for(K * c_per_group * rows.kernel, work, Subnormals::keep, [&](int64_t task) {
    const int64_t r = task % rows.kernel, c = task / rows.kernel % c_per_group, k = task / rows.kernel / c_per_group;
    const int64_t channel = k / k_per_group * c_per_group + c;
    const int64_t p_begin = rows.first(r, 0), p_end = rows.first(r, rows.in);
    for (int64_t s = 0; s < cols.kernel; ++s) {
      const int64_t begin = cols.first(s, 0), end = cols.first(s, cols.in);
      Acc<T> total = 0;
      // One accumulator per output column of the block. Several short sums lose fewer bits than one long sum.
      for (int64_t q0 = begin; q0 < end; q0 += block_size) {
        const int64_t q1 = std::min(q0 + block_size, end);
        Acc<T> acc[block_size] = {};
        for (int64_t n = 0; n < N; ++n)
          for (int64_t p = p_begin; p < p_end; ++p) {
            const T* x_row = x + n * xs.n + channel * xs.c + rows.position(p, r) * xs.h + cols.position(q0, s) * xs.w;
            const T* y_row = y + n * ys.n + k * ys.c + p * ys.h + q0 * ys.w;
            multiply_accumulate(acc, x_row, step_in_x(conv, q1 - q0), y_row, ys.w, q1 - q0);
          }
        for (int64_t q = q0; q < q1; ++q) total += acc[q - q0];
      }
      w[k * ws.n + c * ws.c + r * ws.h + s * ws.w] = T(total);
    }
  });
}

// Calls body(static_cast<T*>(nullptr)), where T is the C++ type of the dtype.
template <class Body>
void with_type(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::float64: return body(static_cast<double*>(nullptr));
    case Dtype::float32: return body(static_cast<float*>(nullptr));
    case Dtype::bfloat16: return body(static_cast<torch::headeronly::BFloat16*>(nullptr));
    case Dtype::float16: return body(static_cast<torch::headeronly::Half*>(nullptr));
  }
}

// Its plan is the problem.
bool make_plan(const Conv& conv, Op, AnyPlan& plan) {
  plan.emplace<Conv>(conv.dtype, conv);
  return true;
}

void run_forward(const AnyPlan& plan, const void* x, const void* w, void* y, const Epilogue& epilogue) {
  with_type(plan.dtype(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    forward(plan.get<Conv>(), static_cast<const T*>(x), static_cast<const T*>(w), static_cast<T*>(y), epilogue);
  });
}

void run_grad_input(const AnyPlan& plan, const void* y, const void* w, void* x) {
  with_type(plan.dtype(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    grad_input(plan.get<Conv>(), static_cast<const T*>(y), static_cast<const T*>(w), static_cast<T*>(x));
  });
}

void run_grad_weight(const AnyPlan& plan, const void* x, const void* y, void* w) {
  with_type(plan.dtype(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    grad_weight(plan.get<Conv>(), static_cast<const T*>(x), static_cast<const T*>(y), static_cast<T*>(w));
  });
}

}  // namespace

Implementation reference() {
  return {.name = "cpu.reference",
          .device = Device::cpu,
          .available = [] { return true; },
          .suits = [](const Conv&, Op) { return true; },
          .supported = "every problem",
          .suited = "every problem",
          .plan = make_plan,
          .describe = [](const AnyPlan&, Op) { return std::string("element by element"); },
          .forward = run_forward,
          .grad_input = run_grad_input,
          .grad_weight = run_grad_weight};
}

}  // namespace torchconv::cpu
