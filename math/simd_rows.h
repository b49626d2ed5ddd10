/* simd_rows.h: element-wise kernels on rows, the Hadamard transform, and rows into and out of KV planes. */
#ifndef RS_MATH_SIMD_ROWS_H
#define RS_MATH_SIMD_ROWS_H

#include "math/simd_expand.h"

static void rms_norm(const float *x, const float *weight, float eps, float *y, size_t n) {
    vf sums[4] = {0};
    float sum = 0;
    size_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        for (size_t j = 0; j < 4; j++) {
            vf v = load(x + i + j * LANES);
            sums[j] += v * v;
        }
    }
    for (; i < n; i++) sum += x[i] * x[i];
    sum += sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
    float factor = 1 / sqrtf(sum / (float)n + eps);
    for (i = 0; i < n; i++) y[i] = x[i] * factor * weight[i];
}

static void rope(float *x, const float *cos, const float *sin, size_t n_rot, rope_pairs pairs) {
    size_t half = n_rot / 2, apart = pairs == ROPE_HALVES ? half : 1, step = pairs == ROPE_HALVES ? 1 : 2;
    size_t i = 0;
    for (; pairs == ROPE_HALVES && i + LANES <= half; i += LANES) {
        vf a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
        store(x + i, a * c - b * s);
        store(x + half + i, a * s + b * c);
    }
    for (; i < half; i++) {
        float *p = x + i * step, a = p[0], b = p[apart];
        p[0] = a * cos[i] - b * sin[i];
        p[apart] = a * sin[i] + b * cos[i];
    }
}

/* Both activations are x * sigmoid(z): z = x, or 2 sqrt(2 / pi) (x + 0.044715 x^3) since 1 + tanh(u) = 2 sigmoid(2u).
 */
INLINE vf activate(activation act, vf x) {
    vf z = act == ACTIVATION_SILU ? x : x * (x * x * 0.0713548162726f + 1.59576912161f);
    return x / (exp_of(-z) + 1);
}

INLINE void gate_as(activation act, float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) store(gate + i, activate(act, load(gate + i)) * load(up + i));
    for (; i < n; i++) gate[i] = activate(act, splat(gate[i]))[0] * up[i];
}

static void gate(activation act, float *gate, const float *up, size_t n) {
    if (act == ACTIVATION_SILU) {
        gate_as(ACTIVATION_SILU, gate, up, n);
    } else {
        gate_as(ACTIVATION_GELU_TANH, gate, up, n);
    }
}

static void add(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

static void scale(float *y, float s, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] *= s;
}

static void hadamard(float *x, size_t n) {
    size_t run = n & (~n + 1); /* The lowest bit set is the largest power of two that divides n. */
    float factor = run > 0 ? 1 / sqrtf((float)run) : 1;
    for (size_t step = 1; step < run; step *= 2) {
        for (size_t begin = 0; begin < n; begin += 2 * step) {
            float *a = x + begin, *b = a + step;
            for (size_t i = 0; i < step; i++) {
                float sum = a[i] + b[i], difference = a[i] - b[i];
                a[i] = sum;
                b[i] = difference;
            }
        }
    }
    scale(x, factor, n);
}

/* Rounds a scale to half, saturating and without the sign of zero, stores it and returns what was stored. */
static float store_scale(uint8_t *dst, float value) {
    uint16_t half = half_from_float(value > HALF_MAX ? HALF_MAX : value < -HALF_MAX ? -HALF_MAX : value);
    if (half == 0x8000) half = 0;
    memcpy(dst, &half, sizeof half);
    return half_to_float(half);
}

INLINE float largest_magnitude(const float *x, size_t n) {
    vf largest = splat(0);
    for (size_t i = 0; i < n; i += LANES) largest = max_of(abs_of(load(x + i)), largest); /* Skips NaN. */
    return max_lanes(largest);
}

/* The operations are those of kernels_ref.c one for one, division included: the bytes must be the same. */
static void store_q8(uint8_t *scale_out, uint8_t *out, const float *x, size_t n) {
    typedef uint8_t bytes __attribute__((vector_size(LANES)));
    float d = store_scale(scale_out, largest_magnitude(x, n) / 127);
    for (size_t i = 0; i < n; i += LANES) {
        vf v = d != 0 ? load(x + i) / d : splat(0);
        v = max_of(min_of(v, splat(127)), splat(-127));
        /* Rounds to even; the low bits are the integer. */
        bytes b = __builtin_convertvector((vi)(v + 0x1.8p23f) + 128, bytes);
        memcpy(out + i, &b, sizeof b);
    }
}

static void store_q4(uint8_t *scale_out, uint8_t *out, const float *x, size_t n) {
    typedef uint8_t bytes __attribute__((vector_size(LANES)));
    float magnitude = largest_magnitude(x, n), largest = 0;
    for (size_t i = n; i-- > 0;) largest = fabsf(x[i]) == magnitude ? x[i] : largest; /* The first counts. */
    float d = store_scale(scale_out, largest / -8);
    for (size_t i = 0; i < n; i += LANES) {
        vf v = d != 0 ? load(x + i) / d + 8.5f : splat(8);
        v = max_of(min_of(v, splat(15.5f)), splat(0));
        bytes b = __builtin_convertvector(__builtin_convertvector(v, vi), bytes);
        memcpy(out + i, &b, sizeof b);
    }
}

/* Bytes of a row (q + 128, or q + 8 of nibbles) to their places in the plane. Four neighbours of K lie together. */
static void place_k(rs_kv_format kv, uint8_t *values, size_t token, const uint8_t *row, size_t head_dim) {
    uint8_t *to = values + plane_value_at(kv, KV_K, token, 0, head_dim);
    if (kv == RS_KV_Q8_0) {
        for (size_t i = 0; i < head_dim; i += 4, to += 64) memcpy(to, row + i, 4);
    } else {
        for (size_t i = 0; i < head_dim; i += 8, to += 64) {
            uint32_t low, high;
            memcpy(&low, row + i, 4);
            memcpy(&high, row + i + 4, 4);
            low |= high << 4;
            memcpy(to, &low, 4);
        }
    }
}

static void place_v(rs_kv_format kv, uint8_t *values, size_t token, const uint8_t *row, size_t head_dim) {
    uint8_t *to = values + plane_value_at(kv, KV_V, token, 0, head_dim);
    const size_t block_bytes = 16 * PAGE_TOKENS / (kv == RS_KV_Q8_0 ? 1 : 2);
    const int shift = plane_value_is_high(token) ? 4 : 0;
    for (size_t i = 0; i < head_dim; i += 16, to += block_bytes) {
        for (size_t j = 0; j < 16; j++) {
            uint8_t *byte = to + 4 * j;
            *byte = (uint8_t)(kv == RS_KV_Q8_0 ? row[i + j] : (*byte & ~(15 << shift)) | row[i + j] << shift);
        }
    }
}

static void store_halves(kv_side side, uint8_t *plane, size_t token, const float *x, size_t head_dim) {
    uint8_t row[2 * HEAD_DIM_MAX];
    size_t i = 0;
    for (; i + LANES <= head_dim; i += LANES) store_half(row + 2 * i, load(x + i));
    for (; i < head_dim; i++) {
        uint16_t half = half_from_float(x[i]);
        memcpy(row + 2 * i, &half, sizeof half);
    }
    if (side == KV_K) {
        uint8_t *to = plane + plane_value_at(RS_KV_F16, KV_K, token, 0, head_dim);
        for (i = 0; i < head_dim; i++, to += 64) memcpy(to, row + 2 * i, 2);
    } else {
        for (i = 0; i < head_dim; i += 32) {
            size_t width = head_dim - i < 32 ? head_dim - i : 32;
            memcpy(plane + plane_value_at(RS_KV_F16, KV_V, token, i, head_dim), row + 2 * i, 2 * width);
        }
    }
}

static void kv_store(rs_kv_format kv, kv_side side, uint8_t *plane, size_t token, const float *x, size_t head_dim) {
    if (kv == RS_KV_F16) {
        store_halves(side, plane, token, x, head_dim);
        return;
    }
    uint8_t *values = plane + plane_values_at(kv, head_dim), row[HEAD_DIM_MAX];
    const size_t n = plane_block(kv, head_dim);
    for (size_t i = 0; i < head_dim; i += n) {
        uint8_t *scale = plane + plane_scale_at(i / n, token);
        if (kv == RS_KV_Q8_0) store_q8(scale, row + i, x + i, n);
        if (kv == RS_KV_Q4_0) store_q4(scale, row + i, x + i, n);
    }
    if (side == KV_K) {
        place_k(kv, values, token, row, head_dim);
    } else {
        place_v(kv, values, token, row, head_dim);
    }
}

/* Not for speed: attention reads whole pages. */
static void kv_load(rs_kv_format kv, kv_side side, const uint8_t *plane, size_t token, float *x, size_t head_dim) {
    kernels_ref.kv_load(kv, side, plane, token, x, head_dim);
}

#endif
