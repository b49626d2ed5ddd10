/* simd_expand.h: rows of weights to floats.
 *
 * Two steps for every quantised format: unpack a block to signed bytes in plain loops over bytes, which compilers turn
 * into full vectors, then convert and scale runs of bytes. Unpacking straight into 32-bit lanes was up to twice as
 * slow. */
#ifndef RS_MATH_SIMD_EXPAND_H
#define RS_MATH_SIMD_EXPAND_H

#include "math/simd.h"

/* dst = q * d + m for n bytes, a multiple of LANES. Adding m = -0 changes nothing, not even the sign of a zero. */
INLINE void scale_run(const int8_t *q, int n, float d, float m, float *dst) {
    for (int i = 0; i < n; i += LANES) store(dst + i, to_float(load_i8((const uint8_t *)q + i)) * d + m);
}

typedef uint8_t vb __attribute__((vector_size(16)));

INLINE vb load_bytes(const uint8_t *src) {
    vb v;
    memcpy(&v, src, sizeof v);
    return v;
}

INLINE void store_bytes(int8_t *dst, vb v) {
    memcpy(dst, &v, sizeof v);
}

/* `value` in each byte of v that has a bit of `mask`, else 0. */
INLINE vb where(vb v, vb mask, uint8_t value) {
    return (vb)((v & mask) != 0) & value;
}

/* 16 bytes to 32 nibbles, the low ones first. */
INLINE void unpack_nibbles(const uint8_t *src, uint8_t offset, int8_t *q) {
    vb v = load_bytes(src);
    store_bytes(q, (v & 15) - offset);
    store_bytes(q + 16, (v >> 4) - offset);
}

/* The same with the 32 fifth bits of src_fifth[4]. */
INLINE void unpack_five(const uint8_t *src_fifth, const uint8_t *src, uint8_t offset, int8_t *q) {
    const vb each_bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    typedef uint64_t halves __attribute__((vector_size(16)));
    const uint64_t ones = 0x0101010101010101; /* Multiplying repeats a byte eight times. */
    vb low = (vb)(halves){src_fifth[0] * ones, src_fifth[1] * ones};
    vb high = (vb)(halves){src_fifth[2] * ones, src_fifth[3] * ones};
    vb v = load_bytes(src);
    store_bytes(q, ((v & 15) | where(low, each_bit, 16)) - offset);
    store_bytes(q + 16, (v >> 4 | where(high, each_bit, 16)) - offset);
}

/* 16 bytes to 32 entries of a table of 16. */
INLINE void unpack_levels(const uint8_t *src, const int8_t *levels, int8_t *q) {
#ifdef __AVX2__
    __m128i table = _mm_loadu_si128((const __m128i *)levels);
    vb v = load_bytes(src);
    store_bytes(q, (vb)_mm_shuffle_epi8(table, (__m128i)(v & 15)));
    store_bytes(q + 16, (vb)_mm_shuffle_epi8(table, (__m128i)(v >> 4)));
#elif NEON
    int8x16_t table = vld1q_s8(levels);
    vb v = load_bytes(src);
    store_bytes(q, (vb)vqtbl1q_s8(table, (uint8x16_t)(v & 15)));
    store_bytes(q + 16, (vb)vqtbl1q_s8(table, (uint8x16_t)(v >> 4)));
#else
    for (int i = 0; i < 16; i++) {
        q[i] = levels[src[i] & 15];
        q[16 + i] = levels[src[i] >> 4];
    }
#endif
}

/* The formats of 32 values; their layouts are told in format.c. */
INLINE void expand_block(format f, const uint8_t *src, float *dst) {
    int8_t q[32];
    switch (f) {
    case FORMAT_Q8_0:
        scale_run((const int8_t *)src + 2, 32, half_at(src), -0.0f, dst);
        break;
    case FORMAT_Q4_0:
        unpack_nibbles(src + 2, 8, q);
        scale_run(q, 32, half_at(src), -0.0f, dst);
        break;
    case FORMAT_Q4_1:
        unpack_nibbles(src + 4, 0, q);
        scale_run(q, 32, half_at(src), half_at(src + 2), dst);
        break;
    case FORMAT_Q5_0:
        unpack_five(src + 2, src + 6, 16, q);
        scale_run(q, 32, half_at(src), -0.0f, dst);
        break;
    case FORMAT_Q5_1:
        unpack_five(src + 4, src + 8, 0, q);
        scale_run(q, 32, half_at(src), half_at(src + 2), dst);
        break;
    case FORMAT_IQ4_NL:
        unpack_levels(src + 2, format_levels_iq4_nl, q);
        scale_run(q, 32, half_at(src), -0.0f, dst);
        break;
    default:
        unpack_levels(src + 1, format_levels_mxfp4, q);
        scale_run(q, 32, format_scale_mxfp4(src[0]), -0.0f, dst);
        break;
    }
}

/* Q4_K and Q5_K: 32 bytes hold the nibbles of sub-block j (low) and j + 1 (high). */
INLINE void expand_q45_k(const uint8_t *src, bool has_fifth, float *dst) {
    const uint8_t *packed = src + 4, *fifth = src + 16, *nibbles = src + (has_fifth ? 48 : 16);
    float d = half_at(src), dmin = half_at(src + 2);
    for (int j = 0; j < 8; j++) {
        int8_t q[32];
        const uint8_t *from = nibbles + j / 2 * 32;
        for (int i = 0; i < 32; i += 16) {
            vb v = load_bytes(from + i), nibble = j % 2 == 0 ? v & 15 : v >> 4;
            if (has_fifth) nibble |= where(load_bytes(fifth + i), (vb){0} + (uint8_t)(1 << j), 16);
            store_bytes(q + i, nibble);
        }
        scale_run(q, 32, d * (float)format_scale_k(packed, j), -(dmin * (float)format_minimum_k(packed, j)),
                  dst + 32 * j);
    }
}

INLINE void expand_q6_k(const uint8_t *src, float *dst) {
    float d = half_at(src + 208);
    for (int part = 0; part < 2; part++, dst += 128) {
        const uint8_t *low = src + 64 * part, *high = src + 128 + 32 * part;
        const int8_t *scales = (const int8_t *)src + 192 + 8 * part;
        int8_t q[128];
        for (int i = 0; i < 32; i += 16) {
            vb a = load_bytes(low + i), b = load_bytes(low + 32 + i), two = load_bytes(high + i);
            store_bytes(q + i, ((a & 15) | (two & 3) << 4) - 32);
            store_bytes(q + 32 + i, ((b & 15) | (two & 12) << 2) - 32);
            store_bytes(q + 64 + i, (a >> 4 | (two & 48)) - 32);
            store_bytes(q + 96 + i, (b >> 4 | (two & 192) >> 2) - 32);
        }
        for (int j = 0; j < 8; j++) scale_run(q + 16 * j, 16, d * (float)scales[j], -0.0f, dst + 16 * j);
    }
}

INLINE void expand_q2_k(const uint8_t *src, float *dst) {
    float d = half_at(src + 80), dmin = half_at(src + 82);
    for (int j = 0; j < 8; j++) {
        int8_t q[32];
        for (int i = 0; i < 32; i += 16) store_bytes(q + i, load_bytes(src + 16 + j / 4 * 32 + i) >> j % 4 * 2 & 3);
        for (int k = 2 * j; k < 2 * j + 2; k++) {
            scale_run(q + k % 2 * 16, 16, d * (float)(src[k] & 15), -(dmin * (float)(src[k] >> 4)), dst + 16 * k);
        }
    }
}

INLINE void expand_q3_k(const uint8_t *src, float *dst) {
    const uint8_t *third = src, *low = src + 32, *packed = src + 96;
    float d = half_at(src + 108);
    for (int j = 0; j < 8; j++) {
        int8_t q[32];
        for (int i = 0; i < 32; i += 16) {
            vb bit = where(load_bytes(third + i), (vb){0} + (uint8_t)(1 << j), 4); /* Set: no offset. */
            store_bytes(q + i, (load_bytes(low + j / 4 * 32 + i) >> j % 4 * 2 & 3) + bit - 4);
        }
        for (int k = 2 * j; k < 2 * j + 2; k++) {
            scale_run(q + k % 2 * 16, 16, d * (float)format_scale_q3_k(packed, k), -0.0f, dst + 16 * k);
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

/* A loop of its own for each format, so that each block is inlined for one format. */
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
    case FORMAT_IQ4_NL:
        EACH_BLOCK(32, 18, expand_block(FORMAT_IQ4_NL, src, dst + i));
    case FORMAT_MXFP4:
        EACH_BLOCK(32, 17, expand_block(FORMAT_MXFP4, src, dst + i));
    case FORMAT_Q2_K:
        EACH_BLOCK(256, 84, expand_q2_k(src, dst + i));
    case FORMAT_Q3_K:
        EACH_BLOCK(256, 110, expand_q3_k(src, dst + i));
    case FORMAT_Q4_K:
        EACH_BLOCK(256, 144, expand_q45_k(src, false, dst + i));
    case FORMAT_Q5_K:
        EACH_BLOCK(256, 176, expand_q45_k(src, true, dst + i));
    case FORMAT_Q6_K:
        EACH_BLOCK(256, 210, expand_q6_k(src, dst + i));
    default:
        format_expand(f, src, dst, n);
        break;
    }
}
#undef EACH_BLOCK

#endif
