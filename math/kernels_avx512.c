/* kernels_avx512.c: the vectorised kernels for AVX-512 (F, BW, DQ, VL); CMake compiles this file with those flags on
 * x86-64. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define LANES 16

#include "math/simd_attend.h"
#include "math/simd_probe.h"
#include "math/simd_rows.h"

const kernels kernels_avx512 = {
    .name = "avx512",
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
#elif defined(__x86_64__)
#error "compile this file with -mavx512f -mavx512bw -mavx512dq -mavx512vl"
#endif
