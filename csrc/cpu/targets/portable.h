// Any machine: the compiler's own vectors of 16 bytes.
#define TORCHCONV_ISA portable
#define TORCHCONV_VECTOR "../simd/portable.h"
