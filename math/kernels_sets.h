/* kernels_sets.h: the tables that kernels.c lists, and sizes that the sets share. Included by math/kernels*.c only. */
#ifndef RS_MATH_KERNELS_SETS_H
#define RS_MATH_KERNELS_SETS_H

#include "math/kernels.h"

enum {
    PRODUCT_K = 256,  /* columns of w expanded at a time: a multiple of every block, small enough for L1 */
    LANES_MAX = 16,   /* floats in the widest vector that a set may use */
    HALF_MAX = 65504, /* largest finite half: where quantised scales saturate */
    PLANE_BLOCK = 32, /* values that share a scale in a quantised plane */
};

extern const kernels kernels_ref, kernels_portable, kernels_avx2, kernels_avx512;

/* The scales and the values of one row of a quantised plane. */
static inline size_t plane_scale_at(size_t token, size_t head_dim) {
    return token * (head_dim / PLANE_BLOCK) * 2;
}
static inline size_t plane_value_at(rs_kv_format kv, size_t token, size_t head_dim) {
    size_t row_bytes = kv == RS_KV_F16 ? 2 * head_dim : kv == RS_KV_Q8_0 ? head_dim : head_dim / 2;
    size_t scales_bytes = kv == RS_KV_F16 ? 0 : plane_scale_at(PAGE_TOKENS, head_dim);
    return scales_bytes + token * row_bytes;
}

#endif
