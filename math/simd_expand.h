/* simd_expand.h: rows of weights and of KV planes to floats. */
#ifndef RS_MATH_SIMD_EXPAND_H
#define RS_MATH_SIMD_EXPAND_H

#include "math/simd.h"

/* Nibbles of 16 bytes as 32 values (value - offset) * d + m, low nibbles first; with the 32 fifth bits of Q5.
 * Adding m = -0 changes nothing, not even the sign of a zero. */
INLINE void expand_nibbles(const uint8_t *nibbles, uint32_t fifth_bits, int offset, float d, float m, float *dst) {
    vi lane_bit;
    for (int i = 0; i < LANES; i++) lane_bit[i] = 1 << i;
    for (int i = 0; i < 16; i += LANES) {
        vi bytes = load_u8(nibbles + i), low = bytes & 15, high = bytes >> 4;
        if (fifth_bits != 0) {
            low |= ((lane_bit & (int32_t)(fifth_bits >> i)) != 0) & 16;
            high |= ((lane_bit & (int32_t)(fifth_bits >> (16 + i))) != 0) & 16;
        }
        store(dst + i, to_float(low - offset) * d + m);
        store(dst + 16 + i, to_float(high - offset) * d + m);
    }
}

INLINE void expand_bytes(const uint8_t *bytes, float d, float *dst) {
    for (int i = 0; i < 32; i += LANES) store(dst + i, to_float(load_i8(bytes + i)) * d);
}

/* The formats of 32 values. */
INLINE void expand_block(format f, const uint8_t *src, float *dst) {
    uint32_t fifth;
    switch (f) {
    case FORMAT_Q8_0:
        expand_bytes(src + 2, half_at(src), dst);
        break;
    case FORMAT_Q4_0:
        expand_nibbles(src + 2, 0, 8, half_at(src), -0.0f, dst);
        break;
    case FORMAT_Q4_1:
        expand_nibbles(src + 4, 0, 0, half_at(src), half_at(src + 2), dst);
        break;
    case FORMAT_Q5_0:
        memcpy(&fifth, src + 2, sizeof fifth);
        expand_nibbles(src + 6, fifth, 16, half_at(src), -0.0f, dst);
        break;
    default:
        memcpy(&fifth, src + 4, sizeof fifth);
        expand_nibbles(src + 8, fifth, 0, half_at(src), half_at(src + 2), dst);
        break;
    }
}

/* Q4_K and Q5_K: 32 bytes hold the nibbles of sub-block j (low) and j + 1 (high). */
INLINE void expand_k(const uint8_t *src, bool has_fifth, float *dst) {
    const uint8_t *packed = src + 4, *fifth = src + 16, *nibbles = src + (has_fifth ? 48 : 16);
    float d = half_at(src), dmin = half_at(src + 2);
    for (int j = 0; j < 8; j += 2, nibbles += 32, dst += 64) {
        float scale[2] = {d * (float)format_scale_k(packed, j), d * (float)format_scale_k(packed, j + 1)};
        float minimum[2] = {dmin * (float)format_minimum_k(packed, j), dmin * (float)format_minimum_k(packed, j + 1)};
        for (int i = 0; i < 32; i += LANES) {
            vi bytes = load_u8(nibbles + i), low = bytes & 15, high = bytes >> 4;
            if (has_fifth) {
                vi bits = load_u8(fifth + i) >> j;
                low |= (bits & 1) << 4;
                high |= (bits & 2) << 3;
            }
            store(dst + i, to_float(low) * scale[0] - minimum[0]);
            store(dst + 32 + i, to_float(high) * scale[1] - minimum[1]);
        }
    }
}

INLINE void expand_q6_k(const uint8_t *src, float *dst) {
    float d = half_at(src + 208);
    for (int part = 0; part < 2; part++, dst += 128) {
        const uint8_t *low = src + 64 * part, *high = src + 128 + 32 * part, *scales = src + 192 + 8 * part;
        for (int i = 0; i < 32; i += LANES) {
            vi a = load_u8(low + i), b = load_u8(low + 32 + i), bits = load_u8(high + i);
            vi q[4] = {(a & 15) | (bits & 3) << 4, (b & 15) | (bits & 12) << 2, a >> 4 | (bits & 48),
                       b >> 4 | (bits & 192) >> 2};
            for (int j = 0; j < 4; j++) {
                float scale = d * (float)(int8_t)scales[2 * j + i / 16];
                store(dst + 32 * j + i, to_float(q[j] - 32) * scale);
            }
        }
    }
}

static void expand_f16(const uint8_t *src, float *dst, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) store(dst + i, load_half(src + 2 * i));
    for (; i < n; i++) dst[i] = half_at(src + 2 * i);
}

static void expand_bf16(const uint8_t *src, float *dst, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) store(dst + i, (vf)(load_u16(src + 2 * i) << 16));
    if (i < n) format_expand(FORMAT_BF16, src + 2 * i, dst + i, n - i);
}

/* Each loop of its own, so that a block is inlined for one format. */
#define EACH_BLOCK(values, bytes, call)                                                                                \
    for (size_t i = 0; i < n; i += (values), src += (bytes)) call;                                                     \
    break

/* The same bits as format_expand: half scale * 6-bit scale * quant fits a float's 24 bits, so it does not matter that
 * the compiler may fuse the product with the addition that follows. */
static void expand(format f, const void *source, float *dst, size_t n) {
    const uint8_t *src = source;
    switch (f) {
    case FORMAT_F16:
        expand_f16(src, dst, n);
        break;
    case FORMAT_BF16:
        expand_bf16(src, dst, n);
        break;
    case FORMAT_Q8_0:
        EACH_BLOCK(32, 34, expand_block(FORMAT_Q8_0, src, dst + i));
    case FORMAT_Q4_0:
        EACH_BLOCK(32, 18, expand_block(FORMAT_Q4_0, src, dst + i));
    case FORMAT_Q4_1:
        EACH_BLOCK(32, 20, expand_block(FORMAT_Q4_1, src, dst + i));
    case FORMAT_Q5_0:
        EACH_BLOCK(32, 22, expand_block(FORMAT_Q5_0, src, dst + i));
    case FORMAT_Q5_1:
        EACH_BLOCK(32, 24, expand_block(FORMAT_Q5_1, src, dst + i));
    case FORMAT_Q4_K:
        EACH_BLOCK(256, 144, expand_k(src, false, dst + i));
    case FORMAT_Q5_K:
        EACH_BLOCK(256, 176, expand_k(src, true, dst + i));
    case FORMAT_Q6_K:
        EACH_BLOCK(256, 210, expand_q6_k(src, dst + i));
    default:
        format_expand(f, src, dst, n);
        break;
    }
}
#undef EACH_BLOCK

/* n values from value k0 on (multiples of 32 for the quantised formats) of a plane's row. */
static void expand_plane(rs_kv_format f, const uint8_t *plane, size_t token, size_t head_dim, size_t k0, float *dst,
                         size_t n) {
    const uint8_t *values = plane + plane_value_at(f, token, head_dim);
    const uint8_t *scales = plane + plane_scale_at(token, head_dim) + k0 / PLANE_BLOCK * 2;
    if (f == RS_KV_F16) {
        expand_f16(values + 2 * k0, dst, n);
    } else if (f == RS_KV_Q8_0) {
        for (size_t i = 0; i < n; i += 32, scales += 2) expand_bytes(values + k0 + i, half_at(scales), dst + i);
    } else {
        for (size_t i = 0; i < n; i += 32, scales += 2) {
            expand_nibbles(values + (k0 + i) / 2, 0, 8, half_at(scales), 0, dst + i);
        }
    }
}

#endif
