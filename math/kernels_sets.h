/* kernels_sets.h: the tables that kernels.c lists, and sizes that the sets share. Included by math/kernels*.c only. */
#ifndef RS_MATH_KERNELS_SETS_H
#define RS_MATH_KERNELS_SETS_H

#include "math/kernels.h"

enum {
    PRODUCT_K = 256,  /* columns of w expanded at a time: a multiple of every block, small enough for L1 */
    FEW_TOKENS = 8,   /* up to so many tokens, packed weights are multiplied as they are read */
    FEW_ROWS = 4,     /* at most so many rows of w at once then */
    GROUP = 32,       /* values that are unpacked together then */
    LANES_MAX = 16,   /* floats in the widest vector that a set may use */
    HALF_MAX = 65504, /* largest finite half: where quantised scales saturate */
    PLANE_BLOCK = 32, /* values that share a scale in a quantised plane */
};

extern const kernels kernels_ref, kernels_portable, kernels_avx2, kernels_avx512;

/* Where things lie in a plane (kernels.h): the scale of a block of a token, the first value, and the byte of a value
 * after that. */
static inline size_t plane_scale_at(size_t block, size_t token) {
    return (block * PAGE_TOKENS + token) * 2;
}
static inline size_t plane_values_at(rs_kv_format kv, size_t head_dim) {
    return kv == RS_KV_F16 ? 0 : plane_scale_at(head_dim / PLANE_BLOCK, 0);
}
static inline size_t plane_value_at(rs_kv_format kv, kv_side side, size_t token, size_t dim, size_t head_dim) {
    size_t lines = kv == RS_KV_Q4_0 ? head_dim / 2 : head_dim; /* of K, and bytes or halves of a row of V */
    size_t line = kv == RS_KV_Q4_0 ? dim / PLANE_BLOCK * 16 + dim % 16 : dim;
    size_t at = side == KV_K ? line * PAGE_TOKENS + token : token * lines + line;
    return kv == RS_KV_F16 ? 2 * at : at;
}

/* Floats between rows of an expanded V: whole panels of the widest set, and odd in cache lines against set conflicts.
 */
static inline size_t attend_v_stride(size_t head_dim) {
    return (head_dim + 2 * LANES_MAX - 1) / (2 * LANES_MAX) * (2 * LANES_MAX) + LANES_MAX;
}
static inline bool plane_value_is_high(size_t dim) { /* its nibble of a q4_0 byte */
    return dim % PLANE_BLOCK >= 16;
}

#endif
