// Batch normalization by the widest instruction set of this machine.
#include "batch_norm.h"

namespace torchconv {

namespace {

const cpu::BatchNormKernels& kernels() {
#define TORCHCONV_ADDRESS(name) &cpu::name::batch_norm_kernels,
  static constexpr const cpu::BatchNormKernels* all[] = {TORCHCONV_BATCH_NORM_SETS(TORCHCONV_ADDRESS)};
#undef TORCHCONV_ADDRESS
  return **std::ranges::find_if(all, [](auto set) { return set->available(); });
}

}  // namespace

void batch_norm_statistics(const BatchNormShape& shape, const void* x, double* mean, double* variance) {
  kernels().statistics(shape, x, mean, variance);
}

void batch_norm_apply(const BatchNormShape& shape, const void* x, const BatchNormChannels& channels,
                      const void* residual, void* z) {
  kernels().apply(shape, x, channels, residual, z);
}

void batch_norm_gradient_sums(const BatchNormShape& shape, const void* dz, const void* x, const void* z,
                              const BatchNormChannels& channels, void* g, void* sum, void* product) {
  kernels().gradient_sums(shape, dz, x, z, channels, g, sum, product);
}

void batch_norm_grad_input(const BatchNormShape& shape, const void* dz, const void* x,
                           const BatchNormChannels& channels, const void* factor, const void* offset, void* dx) {
  kernels().grad_input(shape, dz, x, channels, factor, offset, dx);
}

}  // namespace torchconv
