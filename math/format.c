/* format.c: what is known of each number format, halves, slices, and the expansion of the formats of 32-value blocks.
 *
 * Expansion is bit-exact with gguf's numpy code, so the order of operations matters and CMake compiles this file with
 * -ffp-contract=off: a fused multiply-add would round once where numpy rounds twice. */
#include "math/format.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "math/format_blocks.h"

static const format_info infos[FORMAT_LIMIT] = {
    [FORMAT_F32] = {"F32", 1, 4},       [FORMAT_F16] = {"F16", 1, 2},         [FORMAT_BF16] = {"BF16", 1, 2},
    [FORMAT_Q4_0] = {"Q4_0", 32, 18},   [FORMAT_Q4_1] = {"Q4_1", 32, 20},     [FORMAT_Q5_0] = {"Q5_0", 32, 22},
    [FORMAT_Q5_1] = {"Q5_1", 32, 24},   [FORMAT_Q8_0] = {"Q8_0", 32, 34},     [FORMAT_Q2_K] = {"Q2_K", 256, 84},
    [FORMAT_Q3_K] = {"Q3_K", 256, 110}, [FORMAT_Q4_K] = {"Q4_K", 256, 144},   [FORMAT_Q5_K] = {"Q5_K", 256, 176},
    [FORMAT_Q6_K] = {"Q6_K", 256, 210}, [FORMAT_IQ4_NL] = {"IQ4_NL", 32, 18}, [FORMAT_MXFP4] = {"MXFP4", 32, 17},
};

format_info format_describe(uint32_t number) {
    return number < FORMAT_LIMIT ? infos[number] : (format_info){NULL, 0, 0};
}

size_t format_bytes(format f, size_t values) {
    format_info info = format_describe(f);
    assert(info.name != NULL && values % info.block_values == 0);
    return values / info.block_values * info.block_bytes;
}

matrix matrix_rows(const matrix *m, size_t begin, size_t end) {
    assert(begin <= end && end <= m->rows);
    matrix slice = *m;
    slice.data += begin * m->row_bytes;
    slice.rows = end - begin;
    return slice;
}

matrix matrix_cols(const matrix *m, size_t begin, size_t end) {
    assert(begin <= end && end <= m->cols);
    matrix slice = *m;
    slice.data += format_bytes(m->format, begin);
    slice.cols = end - begin;
    assert(slice.cols % format_describe(m->format).block_values == 0);
    return slice;
}

static float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 0x1F, mantissa = half & 0x3FF;
    if (exponent == 31) { /* Infinity, or a NaN made quiet as the hardware conversion does. */
        return float_of_bits(sign | 0x7F800000 | mantissa << 13 | (mantissa != 0 ? 0x400000 : 0));
    }
    if (exponent == 0) { /* Zero or denormal: mantissa * 2^-24, exact in a float. */
        float magnitude = (float)mantissa * 0x1p-24f;
        return sign != 0 ? -magnitude : magnitude;
    }
    return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t half_from_float(float value) {
    uint32_t bits = bits_of_float(value), magnitude = bits & 0x7FFFFFFF;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7F800000) return (uint16_t)(sign | 0x7E00 | (magnitude >> 13 & 0x3FF));
    if (magnitude >= 0x477FF000) return sign | 0x7C00; /* 65520 and above round to infinity. */
    if (magnitude < 0x38800000) {                      /* Below 2^-14 the half is denormal: a multiple of 2^-24. */
        /* Adding 0.5 leaves exactly 24 bits below the point, so the addition rounds as wanted. */
        return (uint16_t)(sign | (bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3F000000));
    }
    magnitude += 0xFFF + (magnitude >> 13 & 1); /* Ties to even; a carry moves on into the exponent. */
    return (uint16_t)(sign | ((magnitude >> 13) - (112 << 10)));
}

/* half d; int8 q[32] */
static void expand_q8_0(const uint8_t *src, float *dst) {
    float d = format_half_at(src);
    for (int i = 0; i < 32; i++) dst[i] = (float)(int8_t)src[2 + i] * d;
}

/* half d; nibbles[16]: value i in the low half of byte i, value 16 + i in the high half; offset 8 */
static void expand_q4_0(const uint8_t *src, float *dst) {
    float d = format_half_at(src);
    for (int i = 0; i < 16; i++) {
        dst[i] = d * (float)((src[2 + i] & 15) - 8);
        dst[16 + i] = d * (float)((src[2 + i] >> 4) - 8);
    }
}

/* half d, m; nibbles[16] */
static void expand_q4_1(const uint8_t *src, float *dst) {
    float d = format_half_at(src), m = format_half_at(src + 2);
    for (int i = 0; i < 16; i++) {
        dst[i] = d * (float)(src[4 + i] & 15) + m;
        dst[16 + i] = d * (float)(src[4 + i] >> 4) + m;
    }
}

/* Bit `i` of the 32 fifth bits, as 0 or 16. */
static int fifth(const uint8_t *bits, int i) {
    return (bits[i / 8] >> i % 8 & 1) << 4;
}

/* half d; fifth bits[4]; nibbles[16]; offset 16 */
static void expand_q5_0(const uint8_t *src, float *dst) {
    float d = format_half_at(src);
    for (int i = 0; i < 16; i++) {
        dst[i] = d * (float)(((src[6 + i] & 15) | fifth(src + 2, i)) - 16);
        dst[16 + i] = d * (float)((src[6 + i] >> 4 | fifth(src + 2, 16 + i)) - 16);
    }
}

/* half d, m; fifth bits[4]; nibbles[16] */
static void expand_q5_1(const uint8_t *src, float *dst) {
    float d = format_half_at(src), m = format_half_at(src + 2);
    for (int i = 0; i < 16; i++) {
        dst[i] = d * (float)((src[8 + i] & 15) | fifth(src + 4, i)) + m;
        dst[16 + i] = d * (float)(src[8 + i] >> 4 | fifth(src + 4, 16 + i)) + m;
    }
}

/* half d; nibbles[16] that index a fixed, non-uniform table */
static void expand_iq4_nl(const uint8_t *src, float *dst) {
    float d = format_half_at(src);
    for (int i = 0; i < 16; i++) {
        dst[i] = d * (float)format_levels_iq4_nl[src[2 + i] & 15];
        dst[16 + i] = d * (float)format_levels_iq4_nl[src[2 + i] >> 4];
    }
}

/* One exponent byte (OCP Microscaling E8M0); nibbles[16] of E2M1. The table is doubled, so the scale is halved. */
static void expand_mxfp4(const uint8_t *src, float *dst) {
    float d = format_scale_mxfp4(src[0]);
    for (int i = 0; i < 16; i++) {
        dst[i] = d * (float)format_levels_mxfp4[src[1 + i] & 15];
        dst[16 + i] = d * (float)format_levels_mxfp4[src[1 + i] >> 4];
    }
}

static void expand_f16(const uint8_t *src, float *dst) {
    *dst = format_half_at(src);
}

static void expand_bf16(const uint8_t *src, float *dst) {
    *dst = float_of_bits((uint32_t)(src[0] | src[1] << 8) << 16);
}

void format_expand(format f, const void *src, float *dst, size_t values) {
    static void (*const expanders[FORMAT_LIMIT])(const uint8_t *src, float *dst) = {
        [FORMAT_F16] = expand_f16,          [FORMAT_BF16] = expand_bf16,        [FORMAT_Q4_0] = expand_q4_0,
        [FORMAT_Q4_1] = expand_q4_1,        [FORMAT_Q5_0] = expand_q5_0,        [FORMAT_Q5_1] = expand_q5_1,
        [FORMAT_Q8_0] = expand_q8_0,        [FORMAT_Q2_K] = format_expand_q2_k, [FORMAT_Q3_K] = format_expand_q3_k,
        [FORMAT_Q4_K] = format_expand_q4_k, [FORMAT_Q5_K] = format_expand_q5_k, [FORMAT_Q6_K] = format_expand_q6_k,
        [FORMAT_IQ4_NL] = expand_iq4_nl,    [FORMAT_MXFP4] = expand_mxfp4,
    };
    if (f == FORMAT_F32) {
        if (values > 0) memcpy(dst, src, values * sizeof *dst);
        return;
    }
    format_info info = format_describe(f);
    assert(info.name != NULL && values % info.block_values == 0);
    const uint8_t *block = src;
    for (size_t i = 0; i < values; i += info.block_values, block += info.block_bytes) expanders[f](block, dst + i);
}
