/* kernels_avx2.c: the vectorised kernels for AVX2 + FMA + F16C; CMake compiles this file with those flags on x86-64. */
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define LANES 8

#include "math/simd_set.h"

const kernels kernels_avx2 = {.name = "avx2", SIMD_SET};
#elif defined(__x86_64__)
#error "compile this file with -mavx2 -mfma -mf16c"
#endif
