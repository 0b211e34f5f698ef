// The kernels for any machine: simd/ once more, in the compiler's own vectors of 16 bytes.
#include "simd.h"

namespace torchconv::cpu::portable {
#include "simd/vector.h"

#include "simd/portable.h"

#include "simd/all.h"
}  // namespace torchconv::cpu::portable

namespace torchconv::cpu {

InstructionSet portable_set() {
  const auto available = [] { return true; };
  return {available, portable::rows("portable", available), portable::fma_peak};
}

}  // namespace torchconv::cpu
