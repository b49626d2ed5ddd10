/* kernels_portable.c: the vectorised kernels for any CPU: 16-byte vectors, which SSE2 and NEON have. */
#define LANES 4

#include "math/simd_attend.h"
#include "math/simd_probe.h"
#include "math/simd_rows.h"

const kernels kernels_portable = {
    .name = "portable",
    .probe = &probes,
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
};
