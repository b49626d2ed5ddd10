/* kernels_avx512.c: the vectorised kernels for AVX-512 (F, BW, DQ, VL, VNNI: CPUs from 2019 on; older ones run avx2),
 * and with AMX besides; CMake compiles this file with the flags of the former on x86-64. One file for both: they differ
 * in simd_tiles.h alone, which asks for the latter's instructions itself, and everything else takes long to compile. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) &&                 \
    defined(__AVX512VNNI__)
#define LANES 16

#include "math/simd_attend.h"
#include "math/simd_probe.h"
#include "math/simd_rows.h"
#include "math/simd_tiles.h"

#define AVX512_TABLE                                                                                                   \
    .probe = &probes, .matmul = matmul, .expand = expand, .rms_norm = rms_norm, .rope = rope, .gate = gate,            \
    .add = add, .scale = scale, .hadamard = hadamard, .kv_store = kv_store, .kv_load = kv_load,                        \
    .attend_head = attend_head, .merge = merge

const kernels kernels_avx512 = {.name = "avx512", AVX512_TABLE};
const kernels kernels_amx = {.name = "amx", AVX512_TABLE, .pack_x = pack_tiles, .matmul_packed = matmul_tiles};
#elif defined(__x86_64__)
#error "compile this file with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni"
#endif
