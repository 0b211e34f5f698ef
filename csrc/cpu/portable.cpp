// The kernels for any machine: simd/ once more, in the compiler's own vectors of 16 bytes.
#include "simd.h"

#define TORCHCONV_ISA "portable"

namespace torchconv::cpu::portable {
bool available() { return true; }

#include "simd/vector.h"

#include "simd/portable.h"

#include "simd/all.h"
}  // namespace torchconv::cpu::portable

namespace torchconv::cpu {

InstructionSet portable_set() {
  return {portable::available, {std::begin(portable::rows), std::end(portable::rows)}, portable::fma_peak};
}

}  // namespace torchconv::cpu
