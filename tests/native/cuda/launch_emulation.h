// launch() of csrc/cuda/launch.cuh for the emulated GPU.
#pragma once

#include "emulation.h"

namespace torchconv::cuda {

template <class... Parameters, class... Arguments>
void launch(const char*, const Conv&, void (*kernel)(Parameters...), int64_t blocks, int threads, int shared,
            const Arguments&... arguments) {
  emulation::run(blocks, threads, shared, [&] { kernel(arguments...); });
}

}  // namespace torchconv::cuda
