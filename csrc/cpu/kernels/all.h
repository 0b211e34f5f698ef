// Includes all kernels of one instruction set, each after those it builds on. target_region.h includes this file inside
// the target region.
#include "dtypes.h"

#include "../pack/fused_epilogue.h"

#include "../pack/tile.h"

#if defined(TORCHCONV_BF16_PAIRS)
#include "../micro/bf16_pair.h"
#endif

#include "../pack/reduce_chunks.h"

#include "../micro/gemm.h"

#include "../micro/small_k.h"

#if defined(TORCHCONV_AMX)
#include "../micro/amx.h"
#endif

#include "../pack/input_patch.h"

#include "../pack/magnitude.h"

#include "../pack/weights.h"

#include "gemm_plan.h"

#include "gemm_tiles.h"

#include "gemm.h"

#include "gemm_grad_weight_plan.h"

#include "gemm_grad_weight.h"

#include "linear.h"

#include "winograd_transforms.h"

#include "winograd_guard.h"

#include "winograd.h"

#include "winograd_grad_weight_guard.h"

#include "winograd_grad_weight.h"

#include "../micro/depthwise.h"

#include "grouped_patches.h"

#include "grouped.h"

#include "grouped_grad_weight.h"

#include "depthwise_nhwc.h"

#if defined(TORCHCONV_AMX)
#include "amx_gemm.h"

#include "amx_grad_weight.h"
#endif

#include "spatial.h"

#include "spatial_grad_weight.h"

#include "kernel_table.h"
