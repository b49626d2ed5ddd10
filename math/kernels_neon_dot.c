/* kernels_neon_dot.c: the vectorised kernels for NEON with dot products of bytes (optional from Armv8.2, always there
 * from Armv8.4); CMake compiles this file with that extension. */
#ifdef __ARM_FEATURE_DOTPROD
#define LANES 4
#define NEON 1

#include "math/simd_set.h"

const kernels kernels_neon_dot = {.name = "neon_dot", SIMD_SET};
#else
#error "compile this file with -march=armv8.2-a+dotprod"
#endif
