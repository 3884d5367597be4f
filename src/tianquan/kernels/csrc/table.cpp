// The table of one instruction set: compiled once for each, like every kernel file.

#include "operations.h"

#define TIANQUAN_STRING_(x) #x
#define TIANQUAN_STRING(x) TIANQUAN_STRING_(x)

namespace tianquan::TIANQUAN_ISA {

extern const Kernels kKernels;
const Kernels kKernels = {
    TIANQUAN_STRING(TIANQUAN_ISA),
    matmul,
    embedding,
    rms_norm,
    layer_norm,
    rope,
    swiglu,
    attention,
    cached_attention,
    decode,
    quantize,
    fma_gflop_s,
    read_gb_s,
};

}  // namespace tianquan::TIANQUAN_ISA
