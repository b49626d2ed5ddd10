/* simd_plane.h: whole KV planes expanded to floats. */
#ifndef RS_MATH_SIMD_PLANE_H
#define RS_MATH_SIMD_PLANE_H

#include "math/simd.h"

INLINE vi load_words(const uint8_t *src) {
    vi v;
    memcpy(&v, src, sizeof v);
    return v;
}

/* Value j of each lane of a quantised line, before its scale. */
INLINE vf lane_value(const rs_kv_format kv, vi x, const int j) {
    if (kv == RS_KV_Q8_0) return to_float((x >> 8 * j & 255) - 128);
    return to_float((x >> (j % 4 * 8 + j / 4 * 4) & 15) - 8);
}

/* Scales [PAGE_TOKENS] of a block as floats. */
INLINE void load_scales(const uint8_t *plane, size_t block, float *scales) {
    for (size_t t = 0; t < PAGE_TOKENS; t += LANES) store(scales + t, load_half(plane + plane_scale_at(block, t)));
}

static void expand_half_k(const uint8_t *plane, size_t head_dim, float *dst) {
    for (size_t t = 0; t < PAGE_TOKENS; t += LANES) {
        const uint8_t *at = plane + plane_value_at(RS_KV_F16, KV_K, t, 0, head_dim);
        for (size_t d = 0; d < head_dim; d++) store(dst + d * PAGE_TOKENS + t, load_half(at + d * 64));
    }
}

INLINE void expand_quantised_k(const rs_kv_format kv, const uint8_t *plane, size_t head_dim, float *dst) {
    const int together = kv == RS_KV_Q8_0 ? 4 : 8;
    const uint8_t *line = plane + plane_values_at(kv, head_dim);
    for (size_t t = 0; t < PAGE_TOKENS; t += 16) {
        for (size_t d = 0; d < head_dim; d += together, line += 64) {
            for (int i = 0; i < 16; i += LANES) {
                vi x = load_words(line + 4 * i);
                vf scale = load_half(plane + plane_scale_at(d / plane_block(kv, head_dim), t + i));
                for (int j = 0; j < together; j++)
                    store(dst + (d + j) * PAGE_TOKENS + t + i, lane_value(kv, x, j) * scale);
            }
        }
    }
}

/* To [head_dim, PAGE_TOKENS]. */
static void expand_k(rs_kv_format kv, const uint8_t *plane, size_t head_dim, float *dst) {
    if (kv == RS_KV_F16) {
        expand_half_k(plane, head_dim, dst);
    } else if (kv == RS_KV_Q8_0) {
        expand_quantised_k(RS_KV_Q8_0, plane, head_dim, dst);
    } else {
        expand_quantised_k(RS_KV_Q4_0, plane, head_dim, dst);
    }
}

static void expand_half_v(const uint8_t *plane, size_t first, size_t last, size_t head_dim, float *dst) {
    for (size_t d = 0; d < head_dim; d += 32) {
        size_t width = head_dim - d < 32 ? head_dim - d : 32;
        for (size_t t = first; t < last; t++) {
            const uint8_t *line = plane + plane_value_at(RS_KV_F16, KV_V, t, d, head_dim);
            float *row = dst + t * attend_v_stride(head_dim) + d;
            size_t i = 0;
            for (; i + LANES <= width; i += LANES) store(row + i, load_half(line + 2 * i));
            for (; i < width; i++) row[i] = half_at(line + 2 * i);
        }
    }
}

INLINE void expand_quantised_v(const rs_kv_format kv, const uint8_t *plane, size_t first, size_t last, size_t head_dim,
                               float *dst) {
    const int together = kv == RS_KV_Q8_0 ? 4 : 8;
    const size_t stride = attend_v_stride(head_dim), block = plane_block(kv, head_dim);
    float scales[PAGE_TOKENS];
    for (size_t d = 0; d < head_dim; d += 16) {
        if (d % block == 0) load_scales(plane, d / block, scales);
        const uint8_t *lines = plane + plane_values_at(kv, head_dim) + plane_value_at(kv, KV_V, 0, d, head_dim);
        for (size_t t = first / together * together; t < last; t += together) {
            for (int i = 0; i < 16; i += LANES) {
                vi x = load_words(lines + t / together * 64 + 4 * i);
                for (int j = 0; j < together; j++)
                    store(dst + (t + j) * stride + d + i, lane_value(kv, x, j) * scales[t + j]);
            }
        }
    }
}

/* Rows [first, last) of V, and perhaps a few around them, to rows attend_v_stride apart, with zeros behind each. */
static void expand_v(rs_kv_format kv, const uint8_t *plane, size_t first, size_t last, size_t head_dim, float *dst) {
    if (kv == RS_KV_F16) {
        expand_half_v(plane, first, last, head_dim, dst);
    } else if (kv == RS_KV_Q8_0) {
        expand_quantised_v(RS_KV_Q8_0, plane, first, last, head_dim, dst);
    } else {
        expand_quantised_v(RS_KV_Q4_0, plane, first, last, head_dim, dst);
    }
    for (size_t t = first; t < last && head_dim % (2 * LANES) != 0; t++) {
        for (size_t i = head_dim; i % (2 * LANES) != 0; i++) dst[t * attend_v_stride(head_dim) + i] = 0;
    }
}

#endif
