// Batch normalization with an activation: z = activation((x - mean) * scale + shift + residual), with per-channel mean,
// scale and shift; the statistics of x, and the gradients. And the gradient of a factor of each channel of each image,
// as in squeeze-and-excitation. On the CPU.
#pragma once

#include "conv.h"
#include "epilogue.h"

namespace torchconv {

// A batch of images of C channels and P pixels, without gaps: [N][P][C] if channels_last, else [N][C][P].
struct BatchNormShape {
  Dtype dtype;
  int64_t N, C, P;
  bool channels_last;
  Activation activation;
  double slope;  // of leaky_relu, for negative inputs

  int64_t elements() const { return N * C * P; }
};

// Per-channel tensors are [C], float64 for tensors of float64, else float32.
struct BatchNormChannels {
  const void *mean, *scale, *shift;
};

// The passes over memory of one instruction set.
struct BatchNormKernels {
  bool (*available)();

  // The mean and the (biased) variance of each channel.
  void (*statistics)(const BatchNormShape& shape, const void* x, double* mean, double* variance);

  // z; `residual` may be null.
  void (*apply)(const BatchNormShape& shape, const void* x, const BatchNormChannels& channels, const void* residual,
                void* z);

  // The sums of g and of g * (x - mean) of each channel, where g is the gradient before the activation. It is found
  // from z, or, if that is null and there was no residual, from x; and it is stored, unless g is null.
  void (*gradient_sums)(const BatchNormShape& shape, const void* dz, const void* x, const void* z,
                        const BatchNormChannels& channels, void* g, void* sum, void* product);

  // dx = scale * g + factor * (x - mean) + offset, with per-channel factor and offset, or both null for 0. dx may be
  // dz.
  void (*grad_input)(const BatchNormShape& shape, const void* dz, const void* x, const BatchNormChannels& channels,
                     const void* factor, const void* offset, void* dx);

  // sums[n][c]: the sum of a * b over the pixels of each channel of each image.
  void (*channel_products)(const BatchNormShape& shape, const void* a, const void* b, void* sums);
};

// Those of the widest instruction set that this machine has.
const BatchNormKernels& batch_norm_kernels();

}  // namespace torchconv
