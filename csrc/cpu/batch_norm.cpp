#include "batch_norm.h"

namespace torchconv {

const BatchNormKernels& batch_norm_kernels() {
#define TORCHCONV_ADDRESS(name) &cpu::name::batch_norm_table,
  static constexpr const BatchNormKernels* widest_first[] = {TORCHCONV_BATCH_NORM_SETS(TORCHCONV_ADDRESS)};
#undef TORCHCONV_ADDRESS
  return **std::ranges::find_if(widest_first, [](auto set) { return set->available(); });
}

}  // namespace torchconv
