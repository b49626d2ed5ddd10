/* kernels_ref.c: the meaning of every kernel. Plain loops that accumulate in double, never optimised. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "math/kernels_sets.h"

static void matmul(const matrix *w, size_t row_begin, size_t row_end, const float *x, size_t x_stride, size_t tokens,
                   float *y, size_t y_stride, float *scratch) {
    for (size_t r = row_begin; r < row_end; r++) {
        const uint8_t *row = w->data + r * w->row_bytes;
        for (size_t t = 0; t < tokens; t++) {
            double sum = 0;
            for (size_t k = 0; k < w->cols; k += PRODUCT_K) {
                size_t n = w->cols - k < PRODUCT_K ? w->cols - k : PRODUCT_K;
                format_expand(w->format, row + format_bytes(w->format, k), scratch, n);
                for (size_t i = 0; i < n; i++) sum += (double)scratch[i] * x[t * x_stride + k + i];
            }
            y[t * y_stride + r] = (float)sum;
        }
    }
}

static void rms_norm(const float *x, const float *weight, float eps, float *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    double factor = 1 / sqrt(sum / (double)n + (double)eps);
    for (size_t i = 0; i < n; i++) y[i] = (float)(x[i] * factor * weight[i]);
}

static void rope(float *x, const float *cos, const float *sin, size_t n_rot, rope_pairs pairs) {
    for (size_t i = 0; i < n_rot / 2; i++) {
        float *a = pairs == ROPE_HALVES ? x + i : x + 2 * i;
        float *b = pairs == ROPE_HALVES ? x + i + n_rot / 2 : x + 2 * i + 1;
        double rotated_a = (double)*a * cos[i] - (double)*b * sin[i];
        double rotated_b = (double)*a * sin[i] + (double)*b * cos[i];
        *a = (float)rotated_a;
        *b = (float)rotated_b;
    }
}

static void gate(activation act, float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) {
        double x = gate[i];
        double inner = 0.79788456080286535588 * (x + 0.044715 * x * x * x); /* sqrt(2 / pi) */
        double y = act == ACTIVATION_SILU ? x / (1 + exp(-x)) : 0.5 * x * (1 + tanh(inner));
        gate[i] = (float)(y * up[i]);
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
    for (size_t begin = 0; begin < n; begin += run) {
        for (size_t step = 1; step < run; step *= 2) {
            for (size_t i = 0; i < run; i++) {
                if ((i & step) != 0) continue;
                float *a = x + begin + i, *b = a + step;
                double sum = (double)*a + *b, difference = (double)*a - *b;
                *a = (float)(sum * 0.70710678118654752440);
                *b = (float)(difference * 0.70710678118654752440);
            }
        }
    }
}

static void put_half(uint8_t *dst, uint16_t half) {
    dst[0] = (uint8_t)half;
    dst[1] = (uint8_t)(half >> 8);
}

static float get_half(const uint8_t *src) {
    return half_to_float((uint16_t)(src[0] | src[1] << 8));
}

/* Rounds a scale to half, saturating and without the sign of zero, stores it and returns what was stored. */
static float store_scale(uint8_t *dst, float value) {
    float clamped = value > HALF_MAX ? HALF_MAX : value < -HALF_MAX ? -HALF_MAX : value;
    uint16_t half = half_from_float(clamped);
    put_half(dst, half == 0x8000 ? 0 : half);
    return get_half(dst);
}

/* Float arithmetic here, as in every set: all must store the same bytes. A NaN clamps to the upper bound. */
static void store_q8(uint8_t *scale_out, uint8_t *out, const float *x, size_t n) {
    float largest = 0;
    for (size_t i = 0; i < n; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    float d = store_scale(scale_out, largest / 127);
    for (size_t i = 0; i < n; i++) {
        float v = d != 0 ? x[i] / d : 0;
        v = v < 127 ? v : 127;
        v = v > -127 ? v : -127;
        out[i] = (uint8_t)((int)rintf(v) + 128);
    }
}

/* q + 8, one byte a value. */
static void store_q4(uint8_t *scale_out, uint8_t *out, const float *x, size_t n) {
    float largest = 0;
    for (size_t i = 0; i < n; i++) largest = fabsf(x[i]) > fabsf(largest) ? x[i] : largest;
    float d = store_scale(scale_out, largest / -8);
    for (size_t i = 0; i < n; i++) {
        float v = d != 0 ? x[i] / d + 8.5f : 8;
        v = v < 15.5f ? v : 15.5f;
        v = v > 0 ? v : 0;
        out[i] = (uint8_t)v; /* v >= 0, so this is floor. */
    }
}

static void kv_store(rs_kv_format kv, kv_side side, uint8_t *plane, size_t token, const float *x, size_t head_dim) {
    uint8_t *values = plane + plane_values_at(kv, head_dim), row[HEAD_DIM_MAX];
    const size_t n = plane_block(kv, head_dim);
    for (size_t i = 0; kv != RS_KV_F16 && i < head_dim; i += n) {
        uint8_t *scale = plane + plane_scale_at(i / n, token);
        if (kv == RS_KV_Q8_0) store_q8(scale, row + i, x + i, n);
        if (kv == RS_KV_Q4_0) store_q4(scale, row + i, x + i, n);
    }
    for (size_t i = 0; i < head_dim; i++) {
        uint8_t *value = values + plane_value_at(kv, side, token, i, head_dim);
        if (kv == RS_KV_F16) {
            put_half(value, half_from_float(x[i]));
        } else if (kv == RS_KV_Q8_0) {
            *value = row[i];
        } else {
            bool high = plane_value_is_high(side == KV_K ? i : token);
            *value = (uint8_t)(high ? (*value & 15) | row[i] << 4 : (*value & 0xF0) | row[i]);
        }
    }
}

static void kv_load(rs_kv_format kv, kv_side side, const uint8_t *plane, size_t token, float *x, size_t head_dim) {
    for (size_t i = 0; i < head_dim; i++) {
        const uint8_t *value = plane + plane_values_at(kv, head_dim) + plane_value_at(kv, side, token, i, head_dim);
        if (kv == RS_KV_F16) {
            x[i] = get_half(value);
            continue;
        }
        int nibble = plane_value_is_high(side == KV_K ? i : token) ? *value >> 4 : *value & 15;
        float scale = get_half(plane + plane_scale_at(i / plane_block(kv, head_dim), token));
        x[i] = scale * (float)(kv == RS_KV_Q8_0 ? *value - 128 : nibble - 8);
    }
}

static bool sees(const attend_head_args *a, const page_ref *page, size_t row, int token) {
    int64_t query = a->position[row], key = (int64_t)page->position + token;
    return key <= query && (a->window == 0 || key > query - a->window);
}

/* k, v: the page's rows [PAGE_TOKENS, head_dim]. */
static void attend_row(const attend_head_args *a, const page_ref *page, size_t row, const float *k, const float *v) {
    float *max = a->max + row * a->state_stride, *sum = a->sum + row * a->state_stride,
          *out = a->out + row * a->out_stride;
    double scores[PAGE_TOKENS], largest = *max, total = 0;
    for (int j = 0; j < page->count; j++) {
        scores[j] = -INFINITY;
        if (!sees(a, page, row, j)) continue;
        scores[j] = 0;
        for (size_t i = 0; i < a->head_dim; i++) {
            scores[j] += (double)a->q[row * a->q_stride + i] * k[(size_t)j * a->head_dim + i];
        }
        if (scores[j] > largest) largest = scores[j];
    }
    largest = (double)(float)largest; /* What is stored must be what the weights below refer to. */
    if (largest == -INFINITY) return;
    double keep = *max == -INFINITY ? 0 : exp(*max - largest), next[HEAD_DIM_MAX];
    for (size_t i = 0; i < a->head_dim; i++) next[i] = keep == 0 ? 0 : keep * out[i];
    for (int j = 0; j < page->count; j++) {
        if (!sees(a, page, row, j)) continue;
        double weight = exp(scores[j] - largest);
        total += weight;
        for (size_t i = 0; i < a->head_dim; i++) next[i] += weight * v[(size_t)j * a->head_dim + i];
    }
    for (size_t i = 0; i < a->head_dim; i++) out[i] = (float)next[i];
    *sum = (float)(keep == 0 ? total : keep * *sum + total);
    *max = (float)largest;
}

static void attend_head(const attend_head_args *a) {
    assert(a->head_dim <= HEAD_DIM_MAX);
    float *k = a->scratch, *v = k + PAGE_TOKENS * a->head_dim;
    for (size_t p = 0; p < a->n_pages; p++) {
        const page_ref *page = &a->pages[p];
        assert(page->count <= PAGE_TOKENS);
        for (size_t j = 0; j < (size_t)page->count; j++) {
            kv_load(a->k_format, KV_K, page->data + a->k_offset, j, k + j * a->head_dim, a->head_dim);
            kv_load(a->v_format, KV_V, page->data + a->v_offset, j, v + j * a->head_dim, a->head_dim);
        }
        for (size_t row = 0; row < a->rows; row++) attend_row(a, page, row, k, v);
    }
}

static void merge(float *max, float *sum, float *out, float other_max, float other_sum, const float *other_out,
                  size_t head_dim) {
    if (other_max == -INFINITY) return;
    double largest = *max > other_max ? *max : other_max;
    double keep = *max == -INFINITY ? 0 : exp(*max - largest), take = exp(other_max - largest);
    for (size_t i = 0; i < head_dim; i++) out[i] = (float)((keep == 0 ? 0 : keep * out[i]) + take * other_out[i]);
    *sum = (float)((keep == 0 ? 0 : keep * *sum) + take * other_sum);
    *max = (float)largest;
}

const kernels kernels_ref = {
    .name = "ref",
    .matmul = matmul,
    .expand = format_expand,
    .rms_norm = rms_norm,
    .rope = rope,
    .gate = gate,
    .add = add,
    .scale = scale,
    .hadamard = hadamard,
    .kv_store = kv_store,
    .kv_load = kv_load,
    .attend_head = attend_head,
    .merge = merge,
};
