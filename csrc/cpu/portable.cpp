// The kernels for any machine: simd/ once more, in the compiler's own vectors of 16 bytes.
#include "simd.h"

namespace torchconv::cpu::portable {
#include "simd/vector.h"

#include "simd/portable.h"

#include "simd/all.h"
}  // namespace torchconv::cpu::portable

namespace torchconv::cpu {

std::vector<Implementation> portable_rows() {
  return portable::rows("portable", [] { return true; });
}

}  // namespace torchconv::cpu
