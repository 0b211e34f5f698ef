// The convolution problem that every kernel solves, and the algebra that relates the three operators.
//
// T(x, w, y) = <conv2d(x, w), y> is linear in each of its three arguments. The operators are its three partial
// gradients, so the derivatives of each operator are the other two, and derivatives of any order need no further
// kernel:
//
//   op                            result   d/da, given dc                  d/db, given dc
//   conv2d(x, w)                  y        conv2d_grad_input(dy, w)        conv2d_grad_weight(x, dy)
//   conv2d_grad_input(y, w)       x        conv2d(dx, w)                   conv2d_grad_weight(dx, y)
//   conv2d_grad_weight(x, y)      w        conv2d_grad_input(y, dw)        conv2d(x, dw)
//
// The three operators as implicit matrix products, one per group: C[m, n] = sum_k A[m, k] B[k, n].
// The tensors are x [N, C, H, W], w [K, C / groups, R, S] and y [N, K, P, Q]. In the table, C and K count the channels
// of one group, and "gathered" means the im2col matrix, which is never stored:
//
//   op             C     m         n         k         A               B
//   conv2d         y     N P Q     K         R S C     x, gathered     w
//   grad_input     x     N H W     C         R S K     y, gathered     w, transposed
//   grad_weight    w     K         R S C     N P Q     y               x, gathered
#pragma once

#include <cstdint>

// Marks functions that both host code and CUDA kernels call.
#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

namespace torchconv {

enum class Dtype : uint8_t { float64, float32, bfloat16, float16 };

enum class Device : uint8_t { cpu, cuda };

// One spatial axis: `in` is H or W, `kernel` is R or S, `out` is P or Q. The padding after the input is implied by
// `out`, so it is not stored.
struct Axis {
  int64_t in, kernel, out;
  int64_t stride, dilation;
  int64_t pad;  // zeros before the first input element

  // The input position that `tap` reads for output `o`. A position outside [0, in) is padding and reads as zero.
  HOST_DEVICE int64_t position(int64_t o, int64_t tap) const { return o * stride + tap * dilation - pad; }

  // The first output whose `tap` reads at or after input position `at`, clamped to [0, out]. Outputs in
  // [first(tap, a), first(tap, b)) read positions in [a, b) under that tap. Outputs in [first(tap, 0), first(tap, in))
  // read inside the input, so inner loops over them need no bounds check.
  HOST_DEVICE int64_t first(int64_t tap, int64_t at) const {
    const int64_t distance = at + pad - tap * dilation;
    const int64_t o = distance <= 0 ? 0 : stride == 1 ? distance : (distance - 1) / stride + 1;  // division is slow
    return o < out ? o : out;
  }
};

// Strides in elements, in the order of the logical dimensions: x [N, C, H, W], w [K, C, R, S], y [N, K, P, Q].
struct Strides {
  int64_t n, c, h, w;
};

// One convolution problem: shapes, strides, dtype and device. All three operators use the same description.
struct Conv {
  Dtype dtype;
  int64_t N, C, K, groups;  // C and K count all groups
  Axis rows;                // H, R, P
  Axis cols;                // W, S, Q
  Strides x, w, y;
  Device device = Device::cpu;
  bool tf32 = false;  // float32 operands may be rounded to TF32

  HOST_DEVICE int64_t C_per_group() const { return C / groups; }
  HOST_DEVICE int64_t K_per_group() const { return K / groups; }
};

}  // namespace torchconv
