/* simd_plane.h: vectors of values straight out of KV planes, and whole planes expanded to floats. */
#ifndef RS_MATH_SIMD_PLANE_H
#define RS_MATH_SIMD_PLANE_H

#include "math/simd.h"

/* The low nibble of each lane, less 8. */
INLINE vf nibble_value(vi x) {
#if defined(__AVX512F__) && LANES == 16
    const __m512 value = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7}; /* Looked up by the low four bits. */
    return (vf)_mm512_permutexvar_ps((__m512i)x, value);
#else
    return to_float((x & 15) - 8);
#endif
}

/* LANES neighbouring values of a plane, those of a quantised one before their scale. `at`: their first byte; high:
 * which nibbles of a q4_0 plane. */
INLINE vf plane_vector(const rs_kv_format kv, const uint8_t *at, const bool high) {
    if (kv == RS_KV_F16) return load_half(at);
    if (kv == RS_KV_Q8_0) return to_float(load_i8(at));
    vi x = load_u8(at);
    return nibble_value(high ? x >> 4 : x);
}

/* K [head_dim, PAGE_TOKENS] with its scales. */
INLINE void expand_k_as(const rs_kv_format kv, const uint8_t *plane, size_t head_dim, float *dst) {
    const uint8_t *values = plane + plane_values_at(kv, head_dim);
    const size_t value_bytes = kv == RS_KV_F16 ? 2 : 1;
    for (size_t t = 0; t < PAGE_TOKENS; t += LANES) {
        vf scale = splat(1);
        for (size_t d = 0; d < head_dim; d++) {
            const uint8_t *at = values + plane_value_at(kv, KV_K, 0, d, head_dim) + t * value_bytes;
            if (kv != RS_KV_F16 && d % PLANE_BLOCK == 0) scale = load_half(plane + plane_scale_at(d / PLANE_BLOCK, t));
            vf v = plane_vector(kv, at, false);
            if (kv == RS_KV_Q4_0 && plane_value_is_high(d)) v = plane_vector(kv, at, true);
            store(dst + d * PAGE_TOKENS + t, kv == RS_KV_F16 ? v : v * scale);
        }
    }
}

static void expand_k(rs_kv_format kv, const uint8_t *plane, size_t head_dim, float *dst) {
    if (kv == RS_KV_F16) {
        expand_k_as(RS_KV_F16, plane, head_dim, dst);
    } else if (kv == RS_KV_Q8_0) {
        expand_k_as(RS_KV_Q8_0, plane, head_dim, dst);
    } else {
        expand_k_as(RS_KV_Q4_0, plane, head_dim, dst);
    }
}

/* A row of V in blocks of PLANE_BLOCK; kv is quantised. */
INLINE void expand_v_row(const rs_kv_format kv, const uint8_t *plane, size_t token, size_t head_dim, float *dst) {
    const uint8_t *row = plane + plane_values_at(kv, head_dim) + plane_value_at(kv, KV_V, token, 0, head_dim);
    const int block_bytes = kv == RS_KV_Q8_0 ? 32 : 16;
    for (size_t b = 0; b < head_dim / PLANE_BLOCK; b++, row += block_bytes, dst += PLANE_BLOCK) {
        float scale = half_at(plane + plane_scale_at(b, token));
        for (int i = 0; i < PLANE_BLOCK; i += LANES) {
            store(dst + i, plane_vector(kv, row + i % block_bytes, i >= block_bytes) * scale);
        }
    }
}

/* Rows [first, last) of V to rows attend_v_stride apart, with zeros behind each. */
static void expand_v(rs_kv_format kv, const uint8_t *plane, size_t first, size_t last, size_t head_dim, float *dst) {
    size_t stride = attend_v_stride(head_dim);
    for (size_t t = first; t < last; t++) {
        float *row = dst + t * stride;
        if (kv == RS_KV_F16) {
            const uint8_t *values = plane + plane_value_at(RS_KV_F16, KV_V, t, 0, head_dim);
            size_t i = 0;
            for (; i + LANES <= head_dim; i += LANES) store(row + i, load_half(values + 2 * i));
            for (; i < head_dim; i++) row[i] = half_at(values + 2 * i);
        } else if (kv == RS_KV_Q8_0) {
            expand_v_row(RS_KV_Q8_0, plane, t, head_dim, row);
        } else {
            expand_v_row(RS_KV_Q4_0, plane, t, head_dim, row);
        }
        for (size_t i = head_dim; i % (2 * LANES) != 0; i++) row[i] = 0;
    }
}

#endif
