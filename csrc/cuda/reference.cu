// cuda.reference: the three operators as plain loops, one thread per result element (one thread block for grad_weight).
// It supports any dtype, geometry, strides and sizes, and is the implementation that the others are compared with.
//
// Accumulators are double for float64 and float otherwise. All index arithmetic is in 64 bits.
#include "../epilogue.h"
#include "launch.cuh"
#include "tile_math.cuh"
#include "geometry.cuh"
#include "registry.cuh"

namespace torchconv::cuda {

namespace {

constexpr int64_t blocks_at_most = 1 << 20;

// Grid-stride loop: calls body(i) once for each i in [0, count).
template <class Body>
DEVICE void each_index(int64_t count, const Body& body) {
  for (int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x; i < count; i += int64_t(gridDim.x) * threads) body(i);
}

HOST_DEVICE inline bool inside(const Axis& axis, int64_t at) { return at >= 0 && at < axis.in; }

// y[n, k, p, q] = sum over c, r, s of x[n, c, p * stride + r * dilation - pad, ...] * w[k, c, r, s], then the epilogue
template <class T>
KERNEL(threads, 1)
reference_forward(const Conv conv, const T* x, const T* w, T* y, const Epilogue epilogue) {
  using Acc = AccOf<T>;
  const Axis &rows = conv.rows, &cols = conv.cols;
  each_index(conv.N * conv.K * rows.out * cols.out, [&](int64_t i) {
    const int64_t q = i % cols.out, p = i / cols.out % rows.out, k = i / cols.out / rows.out % conv.K,
                  n = i / cols.out / rows.out / conv.K, c0 = k / conv.K_per_group() * conv.C_per_group();
    Acc sum = 0;
    for (int64_t r = 0; r < rows.kernel; ++r) {
      const int64_t h = rows.position(p, r);
      if (!inside(rows, h)) continue;
      for (int64_t s = 0; s < cols.kernel; ++s) {
        const int64_t column = cols.position(q, s);
        if (!inside(cols, column)) continue;
        const T* from = x + n * conv.x.n + c0 * conv.x.c + h * conv.x.h + column * conv.x.w;
        const T* taps = w + k * conv.w.n + r * conv.w.h + s * conv.w.w;
        for (int64_t c = 0; c < conv.C_per_group(); ++c) sum += Acc(from[c * conv.x.c]) * Acc(taps[c * conv.w.c]);
      }
    }
    const Acc bias = epilogue.bias ? Acc(static_cast<const T*>(epilogue.bias)[k * epilogue.bias_stride]) : Acc(0);
    y[n * conv.y.n + k * conv.y.c + p * conv.y.h + q * conv.y.w] =
        T(activate(epilogue.activation, sum + bias, Acc(epilogue.slope)));
  });
}

// x[n, c, h, w] = sum over k, r, s of y[n, k, p, q] * w[k, c, r, s], over the p and q whose tap r, s reads h, w
template <class T>
KERNEL(threads, 1)
reference_grad_input(const Conv conv, const T* y, const T* w, T* x) {
  using Acc = AccOf<T>;
  const Axis &rows = conv.rows, &cols = conv.cols;
  each_index(conv.N * conv.C * rows.in * cols.in, [&](int64_t i) {
    const int64_t column = i % cols.in, h = i / cols.in % rows.in, c = i / cols.in / rows.in % conv.C,
                  n = i / cols.in / rows.in / conv.C, group = c / conv.C_per_group();
    const auto output = [](const Axis& axis, int64_t at, int64_t tap) {  // -1 if none
      const int64_t distance = at + axis.pad - tap * axis.dilation;
      return distance >= 0 && distance % axis.stride == 0 && distance / axis.stride < axis.out ? distance / axis.stride
                                                                                               : -1;
    };
    Acc sum = 0;
    for (int64_t r = 0; r < rows.kernel; ++r) {
      const int64_t p = output(rows, h, r);
      if (p < 0) continue;
      for (int64_t s = 0; s < cols.kernel; ++s) {
        const int64_t q = output(cols, column, s);
        if (q < 0) continue;
        const int64_t k0 = group * conv.K_per_group();
        const T* from = y + n * conv.y.n + k0 * conv.y.c + p * conv.y.h + q * conv.y.w;
        const T* taps = w + k0 * conv.w.n + c % conv.C_per_group() * conv.w.c + r * conv.w.h + s * conv.w.w;
        for (int64_t k = 0; k < conv.K_per_group(); ++k) sum += Acc(from[k * conv.y.c]) * Acc(taps[k * conv.w.n]);
      }
    }
    x[n * conv.x.n + c * conv.x.c + h * conv.x.h + column * conv.x.w] = T(sum);
  });
}

// w[k, c, r, s] = sum over n, p, q of x[n, c, p * stride + r * dilation - pad, ...] * y[n, k, p, q]
// One thread block per element of w: each thread accumulates every 256th pixel, and a tree reduction adds the threads.
template <class T>
KERNEL(threads, 1)
reference_grad_weight(const Conv conv, const T* x, const T* y, T* w) {
  using Acc = AccOf<T>;
  SHARED Acc shared[threads];
  const Axis &rows = conv.rows, &cols = conv.cols;
  const int64_t C = conv.C_per_group(), pixels = conv.N * rows.out * cols.out,
                count = conv.K * C * rows.kernel * cols.kernel;
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
    const int64_t s = i % cols.kernel, r = i / cols.kernel % rows.kernel, c = i / cols.kernel / rows.kernel % C,
                  k = i / cols.kernel / rows.kernel / C;
    const T* from = x + (k / conv.K_per_group() * C + c) * conv.x.c;
    Acc sum = 0;
    for (int64_t pixel = threadIdx.x; pixel < pixels; pixel += threads) {
      const int64_t q = pixel % cols.out, p = pixel / cols.out % rows.out, n = pixel / cols.out / rows.out;
      const int64_t h = rows.position(p, r), column = cols.position(q, s);
      if (inside(rows, h) && inside(cols, column))
        sum += Acc(from[n * conv.x.n + h * conv.x.h + column * conv.x.w]) *
               Acc(y[n * conv.y.n + k * conv.y.c + p * conv.y.h + q * conv.y.w]);
    }
    for (int half = threads / 2; half > 0; half /= 2) {
      shared[threadIdx.x] = sum;
      __syncthreads();
      if (int(threadIdx.x) < half) sum += shared[threadIdx.x + half];
      __syncthreads();
    }
    if (threadIdx.x == 0) w[k * conv.w.n + c * conv.w.c + r * conv.w.h + s * conv.w.w] = T(sum);
  }
}

// Calls body(T{}) for the problem's dtype.
template <class Body>
void with_dtype(const Conv& conv, const Body& body) {
  switch (conv.dtype) {
    case Dtype::bfloat16: return body(c10::BFloat16{});
    case Dtype::float16: return body(c10::Half{});
    case Dtype::float32: return body(float{});
    case Dtype::float64: return body(double{});
  }
}

int64_t blocks_of(int64_t tasks) { return std::min(ceil_div(tasks, threads), blocks_at_most); }

void forward(const AnyPlan& plan, const void* x, const void* w, void* y, const Epilogue& epilogue) {
  const Conv& conv = plan.get<Conv>();
  with_dtype(conv, [&]<class T>(T) {
    launch("reference_forward", conv, reference_forward<T>, blocks_of(conv.N * conv.K * conv.rows.out * conv.cols.out),
           threads, 0, conv, static_cast<const T*>(x), static_cast<const T*>(w), static_cast<T*>(y), epilogue);
  });
}

void grad_input(const AnyPlan& plan, const void* y, const void* w, void* x) {
  const Conv& conv = plan.get<Conv>();
  with_dtype(conv, [&]<class T>(T) {
    launch("reference_grad_input", conv, reference_grad_input<T>,
           blocks_of(conv.N * conv.C * conv.rows.in * conv.cols.in), threads, 0, conv, static_cast<const T*>(y),
           static_cast<const T*>(w), static_cast<T*>(x));
  });
}

void grad_weight(const AnyPlan& plan, const void* x, const void* y, void* w) {
  const Conv& conv = plan.get<Conv>();
  with_dtype(conv, [&]<class T>(T) {
    const int64_t weights = conv.K * conv.C_per_group() * conv.rows.kernel * conv.cols.kernel;
    launch("reference_grad_weight", conv, reference_grad_weight<T>, std::min(weights, blocks_at_most), threads, 0, conv,
           static_cast<const T*>(x), static_cast<const T*>(y), static_cast<T*>(w));
  });
}

bool every(const Conv&, Op) { return true; }

}  // namespace

Implementation reference() {
  return {.name = "cuda.reference",
          .device = Device::cuda,
          .available = has_sm80,
          .suits = suits_always,
          .supported = "every problem",
          .suited = "every problem",
          .plan = make_plan<every>,
          .describe = [](const AnyPlan&, Op) { return std::string("element by element"); },
          .forward = forward,
          .grad_input = grad_input,
          .grad_weight = grad_weight};
}

}  // namespace torchconv::cuda
