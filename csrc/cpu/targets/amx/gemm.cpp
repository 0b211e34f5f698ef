// Compiles gemm (bfloat16, any geometry) for AMX.
#include "../amx.h"
#define TORCHCONV_INSTANCES template struct Operators<AmxGemm>;
#include "../target_region.h"
