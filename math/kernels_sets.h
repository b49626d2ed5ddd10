/* kernels_sets.h: the tables that kernels.c lists, and sizes that the sets share. Included by math/kernels*.c only. */
#ifndef RS_MATH_KERNELS_SETS_H
#define RS_MATH_KERNELS_SETS_H

#include "math/kernels.h"

enum {
    PRODUCT_K = 256,  /* columns of w expanded at a time: a multiple of every block, small enough for L1 */
    FEW_ROWS = 4,     /* at most so many rows of w at once then */
    GROUP = 32,       /* values that are unpacked together then */
    TILE_ROWS = 16,   /* rows of a tile of packed x or w, */
    TILE_COLS = 32,   /* and columns of the product that it holds */
    LANES_MAX = 16,   /* floats in the widest vector that a set may use */
    HALF_MAX = 65504, /* largest finite half: where quantised scales saturate */
    PLANE_BLOCK = 32, /* quantised rows are a multiple of so many values long */
};

extern const kernels kernels_ref, kernels_portable, kernels_avx2, kernels_avx_vnni, kernels_avx512, kernels_amx,
    kernels_neon, kernels_neon_dot, kernels_neon_i8mm;

/* Values of a row that share a scale. */
static inline size_t plane_block(rs_kv_format kv, size_t head_dim) {
    return kv == RS_KV_Q4_0 ? PLANE_BLOCK : head_dim;
}

/* Where things lie in a plane: the scale of a block of a token, the first value, and after that the first byte of a
 * value. */
static inline size_t plane_scale_at(size_t block, size_t token) {
    return (block * PAGE_TOKENS + token) * 2;
}
static inline size_t plane_values_at(rs_kv_format kv, size_t head_dim) {
    return kv == RS_KV_F16 ? 0 : plane_scale_at(head_dim / plane_block(kv, head_dim), 0);
}
static inline size_t plane_value_at(rs_kv_format kv, kv_side side, size_t token, size_t dim, size_t head_dim) {
    size_t lane = side == KV_K ? token : dim, place = side == KV_K ? dim : token;
    size_t lanes = side == KV_K ? PAGE_TOKENS : head_dim, places = side == KV_K ? head_dim : PAGE_TOKENS;
    if (kv == RS_KV_F16) {
        size_t first = lane / 32 * 32, width = lanes - first < 32 ? lanes - first : 32;
        return 2 * (first * places + place * width + lane % 32);
    }
    size_t lines_of_lane = kv == RS_KV_Q8_0 ? places / 4 : places / 8, line = kv == RS_KV_Q8_0 ? place / 4 : place / 8;
    return 64 * (lane / 16 * lines_of_lane + line) + 4 * (lane % 16) + place % 4;
}
static inline bool plane_value_is_high(size_t place) { /* its nibble of a q4_0 byte; place: along the summed axis */
    return place % 8 >= 4;
}

/* Floats between rows of an expanded V: whole panels of the widest set, and odd in cache lines against set conflicts.
 */
static inline size_t attend_v_stride(size_t head_dim) {
    return (head_dim + 2 * LANES_MAX - 1) / (2 * LANES_MAX) * (2 * LANES_MAX) + LANES_MAX;
}
#endif
