/* kernels_neon.c: the vectorised kernels for NEON, which every 64-bit ARM CPU has. */
#define LANES 4
#define NEON 1

#include "math/simd_set.h"

const kernels kernels_neon = {.name = "neon", SIMD_SET};
