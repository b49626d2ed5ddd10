/* simd_set.h: the vectorised kernels as a set: the fields of its table but for the name. */
#ifndef RS_MATH_SIMD_SET_H
#define RS_MATH_SIMD_SET_H

#include "math/simd_attend.h"
#include "math/simd_probe.h"
#include "math/simd_rows.h"

#define SIMD_SET                                                                                                       \
    .matmul = matmul, .expand = expand, .rms_norm = rms_norm, .rope = rope, .gate = gate, .add = add, .scale = scale,  \
    .hadamard = hadamard, .kv_store = kv_store, .kv_load = kv_load, .attend_head = attend_head, .merge = merge,        \
    .probe = &probes

#endif
