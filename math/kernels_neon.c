/* kernels_neon.c: the vectorised kernels for NEON, which every 64-bit ARM CPU has. */
#define LANES 4
#define NEON 1

#include "math/simd_attend.h"
#include "math/simd_probe.h"
#include "math/simd_rows.h"

const kernels kernels_neon = {
    .name = "neon",
    .matmul = matmul,
    .expand = expand,
    .rms_norm = rms_norm,
    .rope = rope,
    .gate = gate,
    .add = add,
    .scale = scale,
    .hadamard = hadamard,
    .kv_store = kv_store,
    .kv_load = kv_load,
    .attend_head = attend_head,
    .merge = merge,
    .probe = &probes,
};
