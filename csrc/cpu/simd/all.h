// The kernels, in the order in which they build on one another.
#include "tile.h"

#if defined(TORCHCONV_PAIRS)
#include "pairs.h"
#endif

#include "mma.h"

#include "dot.h"

#include "patch.h"

#include "weights.h"

#include "gemm.h"

#include "gemm_weight.h"

#include "winograd_tiles.h"

#include "winograd.h"

#include "winograd_weight.h"

#include "taps.h"

#include "slab.h"

#include "depthwise.h"

#include "planes.h"

#include "planes_weight.h"

#include "peak.h"

#include "columns.h"

#include "kernels.h"

#if defined(TORCHCONV_PAIRS)
#include "pair_kernels.h"
#endif
