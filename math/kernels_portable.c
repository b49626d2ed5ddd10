/* kernels_portable.c: the vectorised kernels for any CPU: 16-byte vectors, which SSE2 and NEON have. */
#define LANES 4

#include "math/simd_set.h"

const kernels kernels_portable = {.name = "portable", SIMD_SET};
