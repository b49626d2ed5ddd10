/* kernels_avx_vnni.c: the vectorised kernels for AVX2 + FMA + F16C + AVX-VNNI; CMake compiles this file with those
 * flags on x86-64. */
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(__AVXVNNI__)
#define LANES 8

#include "math/simd_set.h"

const kernels kernels_avx_vnni = {.name = "avx_vnni", SIMD_SET};
#elif defined(__x86_64__)
#error "compile this file with -mavx2 -mfma -mf16c -mavxvnni"
#endif
