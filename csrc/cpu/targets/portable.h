// The portable target: any machine, with the compiler's own 16-byte vectors. See target_region.h.
#define TORCHCONV_ISA portable
#define TORCHCONV_VECTOR "../vec/portable.h"
