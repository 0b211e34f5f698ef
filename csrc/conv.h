// The problem that every kernel solves, and the algebra behind the three operators.
//
// T(x, w, y) = <conv2d(x, w), y> is linear in each of its three slots. The operators are its three partial gradients,
// so the derivative of each one is the other two, and derivatives of every order need no further kernel:
//
//   op                            result   d/da, given dc                  d/db, given dc
//   conv2d(x, w)                  y        conv2d_grad_input(dy, w)        conv2d_grad_weight(x, dy)
//   conv2d_grad_input(y, w)       x        conv2d(dx, w)                   conv2d_grad_weight(dx, y)
//   conv2d_grad_weight(x, y)      w        conv2d_grad_input(y, dw)        conv2d(x, dw)
//
// The same three as matrix products, one per group, C[m, n] = sum_k A[m, k] B[k, n]
// (x [N, C, H, W], w [K, C / groups, R, S], y [N, K, P, Q]; C and K below are those of one group):
//
//   op             C     m         n         k         A               B
//   conv2d         y     N P Q     K         R S C     x, gathered     w
//   grad_input     x     N H W     C         R S K     y, gathered     w, transposed
//   grad_weight    w     K         R S C     N P Q     y               x, gathered
#pragma once

#include <cstdint>

// For functions that CUDA kernels call, too.
#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

namespace torchconv {

enum class Dtype : uint8_t { float64, float32, bfloat16, float16 };

enum class Device : uint8_t { cpu, cuda };

// One spatial axis: `in` is H or W, `kernel` is R or S, `out` is P or Q. The padding after the input is implied by
// `out`.
struct Axis {
  int64_t in, kernel, out;
  int64_t stride, dilation;
  int64_t pad;  // zeros before the first input element

  // The input position under `tap` of the window at `o`; outside [0, in) it reads a zero of the padding.
  HOST_DEVICE int64_t position(int64_t o, int64_t tap) const { return o * stride + tap * dilation - pad; }

  // The first output whose `tap` lies at or after `at`. The outputs in [first(tap, a), first(tap, b)) read [a, b) under
  // that tap, and those in [first(tap, 0), first(tap, in)) read the input, so that inner loops need no test.
  HOST_DEVICE int64_t first(int64_t tap, int64_t at) const {
    const int64_t distance = at + pad - tap * dilation;
    const int64_t o = distance <= 0 ? 0 : stride == 1 ? distance : (distance - 1) / stride + 1;  // divisions are slow
    return o < out ? o : out;
  }
};

// Strides in elements, always in the order of the logical dimensions: x [N, C, H, W], w [K, C, R, S], y [N, K, P, Q].
struct Strides {
  int64_t n, c, h, w;
};

struct Conv {
  Dtype dtype;
  int64_t N, C, K, groups;  // C and K over all groups
  Axis rows;                // H, R, P
  Axis cols;                // W, S, Q
  Strides x, w, y;
  Device device = Device::cpu;
  bool tf32 = false;  // float32 products may be rounded to TF32

  HOST_DEVICE int64_t C_per_group() const { return C / groups; }
  HOST_DEVICE int64_t K_per_group() const { return K / groups; }
};

// What conv2d applies to each sum before the store: y = activation(sum + bias[k]).
enum class Activation : uint8_t { none, relu, leaky_relu, relu6, sigmoid, tanh };

struct Epilogue {
  const void* bias = nullptr;  // [K] of the problem's dtype, or null
  int64_t bias_stride = 0;     // in elements
  Activation activation = Activation::none;
  double slope = 0;  // of leaky_relu, for negative sums
};

}  // namespace torchconv
