/* kernels_neon_i8mm.c: the vectorised kernels for NEON with products of 8-bit matrices (optional from Armv8.2, always
 * there from Armv8.6); CMake compiles this file with that extension. */
#if defined(__ARM_FEATURE_MATMUL_INT8) && defined(__ARM_FEATURE_DOTPROD)
#define LANES 4
#define NEON 1

#include "math/simd_set.h"

const kernels kernels_neon_i8mm = {.name = "neon_i8mm", SIMD_SET};
#else
#error "compile this file with -march=armv8.2-a+dotprod+i8mm"
#endif
