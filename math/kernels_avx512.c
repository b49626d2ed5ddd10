/* kernels_avx512.c: the vectorised kernels for AVX-512 (F, BW, DQ, VL, VNNI: CPUs from 2019 on; older ones run avx2),
 * and with AMX besides; CMake compiles this file with the flags of the former on x86-64. One file for both: they differ
 * in simd_tiles.h alone, which asks for the latter's instructions itself, and everything else takes long to compile. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) &&                 \
    defined(__AVX512VNNI__)
#define LANES 16

#include "math/simd_set.h"
#include "math/simd_tiles.h"

const kernels kernels_avx512 = {.name = "avx512", SIMD_SET};
const kernels kernels_amx = {.name = "amx", SIMD_SET, .pack_x = pack_tiles, .matmul_packed = matmul_tiles};
#elif defined(__x86_64__)
#error "compile this file with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni"
#endif
