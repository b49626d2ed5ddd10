/* simd_attend_few.h: the query rows of one token (or of a few) against pages that stream through registers.
 *
 * Decode reads the KV cache once and computes little with each byte, so nothing is expanded to memory: a line of K or V
 * meets a register block of rows and is gone. Halves are multiplied as floats. Bytes and nibbles are multiplied as
 * integers with queries and weights of 15 bits: conversion to float would cost more than the product. */
#ifndef RS_MATH_SIMD_ATTEND_FEW_H
#define RS_MATH_SIMD_ATTEND_FEW_H

#include "math/simd_plane.h"

enum {
    FEW_ROWS_MAX = 16, /* with more, expanding a page once for all is cheaper */
#if LANES == 16 || defined(__aarch64__)
    FEW_BLOCK = LANES == 16 ? 8 : 4, /* rows of a register block */
    SUMS_OF_HALVES = 24,             /* of 32 registers */
    SUMS_OF_BYTES = 16,
#else
    FEW_BLOCK = 4,
    SUMS_OF_HALVES = 12, /* of 16 registers */
#ifdef __AVXVNNI__
    SUMS_OF_BYTES = 12,  /* products need no registers, but more sums to hide their latency */
#else
    SUMS_OF_BYTES = 8,
#endif
#endif
};

/* Working memory of few rows, in the kernel's scratch. */
typedef struct few {
    float *scores;  /* [rows, PAGE_TOKENS]; then exp(score - largest of the page) */
    float *keep;    /* [rows] factor of the state so far, */
    float *take;    /* [rows] and of what the page gives */
    float *q_scale; /* [rows] */
    int32_t *q_sum; /* [rows, blocks of a row] */
    int16_t *q;     /* [rows, HEAD_DIM_MAX] q / q_scale, in the order that stream_bytes wants */
} few;

static few few_place(float *scratch, size_t rows, size_t head_dim) {
    few f = {.scores = scratch};
    f.keep = f.scores + rows * PAGE_TOKENS;
    f.take = f.keep + rows;
    f.q_scale = f.take + rows;
    f.q_sum = (int32_t *)(f.q_scale + rows);
    f.q = (int16_t *)(f.q_sum + rows * (head_dim / PLANE_BLOCK));
    return f;
}

/* How many parts that take `each` sums are worked on at once: a power of two, at most `most` <= 16. No loop: gcc keeps
 * sums in registers only if it knows their number early. */
INLINE int parts_at_once(const int each, const int most, const int sums) {
    const int fit = sums / each, parts = fit >= 16 ? 16 : fit >= 8 ? 8 : fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
    return parts < most ? parts : most;
}

INLINE void prefetch_line(const uint8_t *line, ptrdiff_t ahead) {
    if (ahead != 0) __builtin_prefetch(line + ahead, 0, 2);
}

/* ---- Halves ---- */

/* sum[r][j] += w[r][i] * line i, for `vectors` vectors from lane `lane` on; `next_block`: bytes from a block of 32
 * lanes to the following one. ahead: bytes to the same place of the page that follows, or 0. */
INLINE void stream_halves(const int rows, const int vectors, const uint8_t *line, size_t next_block, size_t lines,
                          const float *w, size_t w_stride, ptrdiff_t ahead, vf sum[FEW_BLOCK][64 / LANES]) {
    for (size_t i = 0; i < lines; i++, line += 64) {
        prefetch_line(line, ahead);
        if (vectors * LANES > 32) prefetch_line(line + next_block, ahead);
        for (int j = 0; j < vectors; j++) {
            vf x = load_half(line + (j * LANES >= 32 ? next_block : 0) + j * LANES % 32 * 2);
            for (int r = 0; r < rows; r++) sum[r][j] += x * w[(size_t)r * w_stride + i];
        }
    }
}

INLINE void score_halves(const int rows, const attend_head_args *a, const few *f, size_t row, const uint8_t *k,
                         ptrdiff_t ahead) {
    const int vectors = parts_at_once(rows, 64 / LANES, SUMS_OF_HALVES);
    const size_t block = a->head_dim * 64;
    for (size_t t = 0; t < PAGE_TOKENS; t += (size_t)vectors * LANES) {
        vf sum[FEW_BLOCK][64 / LANES];
        for (int r = 0; r < rows; r++) {
            for (int j = 0; j < vectors; j++) sum[r][j] = splat(0);
        }
        stream_halves(rows, vectors, k + t / 32 * block + t % 32 * 2, block, a->head_dim, a->q + row * a->q_stride,
                      a->q_stride, t % 32 == 0 ? ahead : 0, sum);
        for (int r = 0; r < rows; r++) {
            for (int j = 0; j < vectors; j++) store(f->scores + (row + r) * PAGE_TOKENS + t + j * LANES, sum[r][j]);
        }
    }
}

INLINE void value_halves_part(const int rows, const int vectors, const attend_head_args *a, const few *f, size_t row,
                              const uint8_t *v, size_t dim, size_t tokens, ptrdiff_t ahead) {
    const size_t block = PAGE_TOKENS * 64;
    vf sum[FEW_BLOCK][64 / LANES];
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < vectors; j++) sum[r][j] = splat(0);
    }
    stream_halves(rows, vectors, v + dim / 32 * block + dim % 32 * 2, block, tokens, f->scores + row * PAGE_TOKENS,
                  PAGE_TOKENS, dim % 32 == 0 ? ahead : 0, sum);
    for (int r = 0; r < rows; r++) {
        float *out = a->out + (row + r) * a->out_stride + dim;
        for (int j = 0; j < vectors; j++)
            store(out + j * LANES, load(out + j * LANES) * f->keep[row + r] + sum[r][j] * f->take[row + r]);
    }
}

INLINE void value_halves(const int rows, const attend_head_args *a, const few *f, size_t row, const uint8_t *v,
                         size_t tokens, ptrdiff_t ahead) {
    const int vectors = parts_at_once(rows, 64 / LANES, SUMS_OF_HALVES),
              of_block = vectors * LANES < 32 ? vectors : 32 / LANES;
    size_t dim = 0;
    for (; dim + (size_t)vectors * LANES <= a->head_dim; dim += (size_t)vectors * LANES)
        value_halves_part(rows, vectors, a, f, row, v, dim, tokens, ahead);
    for (; dim < a->head_dim; dim += (size_t)of_block * LANES)
        value_halves_part(rows, of_block, a, f, row, v, dim, tokens, ahead);
}

/* ---- Bytes and nibbles ---- */

#if NEON
#include "math/simd_attend_neon.h"
#else
enum { WEIGHT_MAX = 32767 };

/* What stored values are too large by for stream_bytes. */
INLINE int value_offset(const rs_kv_format kv) {
    return kv == RS_KV_Q8_0 ? 128 : 8;
}

typedef int16_t shorts __attribute__((vector_size(4 * LANES)));
typedef uint16_t ushorts __attribute__((vector_size(4 * LANES)));

/* Pair p of each lane's values as 16-bit integers, with an offset of 128 (bytes) or 8 (nibbles): of four bytes values
 * (0, 2) and (1, 3), of eight nibbles (0, 2), (4, 6), (1, 3) and (5, 7). */
INLINE vi value_pair(const rs_kv_format kv, vi x, const int p) {
    const int shift = kv == RS_KV_Q8_0 ? 8 * p : 4 * p, last = kv == RS_KV_Q8_0 ? 1 : 3;
    ushorts s = (ushorts)x >> shift;
    return (vi)(p == last ? s : s & (uint16_t)(kv == RS_KV_Q8_0 ? 255 : 15));
}

/* acc + the products of both 16-bit halves of each lane. The empty statement keeps gcc from adding products to each
 * other first, for which it would run out of registers. */
INLINE vi dot_pairs(vi acc, vi x, vi w) {
#if LANES == 16
    return (vi)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)x, (__m512i)w);
#elif defined(__AVXVNNI__) && LANES == 8
    return (vi)_mm256_dpwssd_avx_epi32((__m256i)acc, (__m256i)x, (__m256i)w);
#elif defined(__AVX2__) && LANES == 8
    acc = (vi)((vu)acc + (vu)_mm256_madd_epi16((__m256i)x, (__m256i)w));
    __asm__("" : "+x"(acc));
    return acc;
#elif defined(__SSE2__) && LANES == 4
    return (vi)_mm_add_epi32((__m128i)acc, _mm_madd_epi16((__m128i)x, (__m128i)w));
#else
    return acc + (x << 16 >> 16) * (w << 16 >> 16) + (x >> 16) * (w >> 16);
#endif
}

/* a and b rounded to 2 * LANES integers of 16 bits, those of each four (bytes) or eight (nibbles) neighbours with even
 * places first: the order of value_pair. */
INLINE vi pack_weights(const rs_kv_format kv, vf a, vf b) {
#if defined(__AVX2__) && LANES == 8
    const __m256i by_4 = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5, 2, 3, 6, 7,
                                          8, 9, 12, 13, 10, 11, 14, 15);
    const __m256i by_8 = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12,
                                          13, 2, 3, 6, 7, 10, 11, 14, 15);
    __m256i both = _mm256_packs_epi32(_mm256_cvtps_epi32((__m256)a), _mm256_cvtps_epi32((__m256)b));
    return (vi)_mm256_shuffle_epi8(_mm256_permute4x64_epi64(both, 0xD8), kv == RS_KV_Q8_0 ? by_4 : by_8);
#else
#if LANES == 16
    const shorts by_4 = {0,  4,  2,  6,  8,  12, 10, 14, 16, 20, 18, 22, 24, 28, 26, 30,
                         32, 36, 34, 38, 40, 44, 42, 46, 48, 52, 50, 54, 56, 60, 58, 62};
    const shorts by_8 = {0,  4,  8,  12, 2,  6,  10, 14, 16, 20, 24, 28, 18, 22, 26, 30,
                         32, 36, 40, 44, 34, 38, 42, 46, 48, 52, 56, 60, 50, 54, 58, 62};
#else
    const shorts by_4 = {0, 4, 2, 6, 8, 12, 10, 14}, by_8 = {0, 4, 8, 12, 2, 6, 10, 14};
#endif
    const vf magic = splat(0x1.8p23f); /* Adding this rounds to an integer, which ends up in the low bits. */
    shorts low = (shorts)(a + magic), high = (shorts)(b + magic);
#ifdef __clang__
    shorts packed;
    for (int i = 0; i < 2 * LANES; i++) {
        int from = (kv == RS_KV_Q8_0 ? by_4 : by_8)[i];
        packed[i] = from < 2 * LANES ? low[from] : high[from - 2 * LANES];
    }
    return (vi)packed;
#else
    return (vi)__builtin_shuffle(low, high, kv == RS_KV_Q8_0 ? by_4 : by_8);
#endif
#endif
}

/* sum plus all packed weights, in any lanes. */
INLINE vi add_weights(vi sum, vi packed) {
    return dot_pairs(sum, packed, 0x10001 - (vi){0});
}

/* sum[r][j] += weights of row r times the lines of `groups` groups of 16 lanes, group_bytes apart. */
INLINE void stream_bytes(const rs_kv_format kv, const int rows, const int groups, const uint8_t *line,
                         size_t group_bytes, size_t lines, const int16_t *w, const size_t w_stride, ptrdiff_t ahead,
                         vi sum[FEW_BLOCK][64 / LANES]) {
    const int together = kv == RS_KV_Q8_0 ? 4 : 8, of_group = 16 / LANES, vectors = groups * of_group;
    for (size_t i = 0; i < lines; i++, line += 64, w += together) {
        vi x[64 / LANES];
        for (int g = 0; g < groups; g++) prefetch_line(line + g * group_bytes, ahead);
        for (int j = 0; j < vectors; j++)
            x[j] = load_words(line + j / of_group * group_bytes + j % of_group * 4 * LANES);
        for (int p = 0; p < together / 2; p++) {
            vi pair[64 / LANES];
            for (int j = 0; j < vectors; j++) pair[j] = value_pair(kv, x[j], p);
            for (int r = 0; r < rows; r++) {
                int32_t both;
                memcpy(&both, w + (size_t)r * w_stride + 2 * p, sizeof both);
                for (int j = 0; j < vectors; j++) sum[r][j] = dot_pairs(sum[r][j], pair[j], both - (vi){0});
            }
        }
    }
}

#endif

/* Rounds x [n] * factors [n] (or 1) * factor to weights, n a multiple of PLANE_BLOCK, and returns their sum. */
INLINE int32_t round_weights(const rs_kv_format kv, const float *x, const float *factors, float factor, const size_t n,
                             int16_t *dst) {
    vi sum = {0};
    for (size_t i = 0; i < n; i += 2 * LANES) {
        vf a = load(x + i), b = load(x + i + LANES);
        a *= factors != NULL ? load(factors + i) * factor : splat(factor);
        b *= factors != NULL ? load(factors + i + LANES) * factor : splat(factor);
        vi packed = pack_weights(kv, a, b);
        sum = add_weights(sum, packed);
        memcpy(dst + i, &packed, sizeof packed);
    }
    int32_t total = 0;
    for (int i = 0; i < LANES; i++) total += sum[i];
    return total;
}

/* Rounds the queries, once for all pages. */
static void round_queries(const attend_head_args *a, const few *f) {
    const size_t block = plane_block(a->k_format, a->head_dim), blocks = a->head_dim / block;
    for (size_t r = 0; r < a->rows; r++) {
        const float *q = a->q + r * a->q_stride;
        vf largest = splat(0);
        for (size_t i = 0; i < a->head_dim; i += LANES) largest = max_of(abs_of(load(q + i)), largest);
        float scale = max_lanes(largest) / WEIGHT_MAX;
        float factor = scale > 0 ? 1 / scale : 0;
        if (!isfinite(factor)) factor = 0; /* Queries below 1e-34 score nothing. */
        f->q_scale[r] = scale;
        for (size_t b = 0; b < blocks; b++) {
            const float *from = q + b * block;
            int16_t *to = f->q + r * HEAD_DIM_MAX + b * block;
            f->q_sum[r * blocks + b] = a->k_format == RS_KV_Q8_0
                                           ? round_weights(RS_KV_Q8_0, from, NULL, factor, block, to)
                                           : round_weights(RS_KV_Q4_0, from, NULL, factor, block, to);
        }
    }
}

INLINE void score_bytes(const rs_kv_format kv, const int rows, const attend_head_args *a, const few *f, size_t row,
                        const uint8_t *k, ptrdiff_t ahead) {
    const int groups = parts_at_once(rows * (16 / LANES), 4, SUMS_OF_BYTES), vectors = groups * 16 / LANES;
    const int together = kv == RS_KV_Q8_0 ? 4 : 8, offset = value_offset(kv);
    const size_t block = plane_block(kv, a->head_dim), blocks = a->head_dim / block, lines = block / together,
                 group_bytes = blocks * lines * 64;
    const uint8_t *values = k + plane_values_at(kv, a->head_dim);
    for (size_t t = 0; t < PAGE_TOKENS; t += (size_t)groups * 16) {
        vf score[FEW_BLOCK][64 / LANES];
        for (int r = 0; r < rows; r++) {
            for (int j = 0; j < vectors; j++) score[r][j] = splat(0);
        }
        for (size_t b = 0; b < blocks; b++) {
            vi sum[FEW_BLOCK][64 / LANES];
            for (int r = 0; r < rows; r++) {
                for (int j = 0; j < vectors; j++) sum[r][j] = -offset * f->q_sum[(row + r) * blocks + b] - (vi){0};
            }
            stream_bytes(kv, rows, groups, values + t / 16 * group_bytes + b * lines * 64, group_bytes, lines,
                         f->q + row * HEAD_DIM_MAX + b * block, HEAD_DIM_MAX, ahead, sum);
            for (int j = 0; j < vectors; j++) {
                vf scale = load_half(k + plane_scale_at(b, t + j * LANES));
                for (int r = 0; r < rows; r++) score[r][j] += to_float(sum[r][j]) * scale;
            }
        }
        for (int r = 0; r < rows; r++) {
            for (int j = 0; j < vectors; j++)
                store(f->scores + (row + r) * PAGE_TOKENS + t + j * LANES, score[r][j] * f->q_scale[row + r]);
        }
    }
}

/* Weights of this page and block: exp(score - largest) * scale of the token, rounded to 15 bits of what the largest
 * scale allows. step [rows]: what an integer sum stands for. */
INLINE void block_weights(const rs_kv_format kv, const int rows, const few *f, size_t row, const uint8_t *v,
                          size_t block, size_t tokens, int16_t (*w)[PAGE_TOKENS], float *step, int32_t *bias) {
    float scales[PAGE_TOKENS];
    load_scales(v, block, scales);
    for (size_t t = tokens; t < PAGE_TOKENS; t++) scales[t] = 0;
    vf largest = splat(0);
    for (size_t t = 0; t < PAGE_TOKENS; t += LANES) largest = max_of(abs_of(load(scales + t)), largest);
    float range = max_lanes(largest);
    vf factor = splat(range > 0 ? WEIGHT_MAX / range : 0);
    for (size_t t = 0; t < PAGE_TOKENS; t += LANES) store(scales + t, load(scales + t) * factor);
    for (int r = 0; r < rows; r++) {
        int32_t sum = round_weights(kv, f->scores + (row + r) * PAGE_TOKENS, scales, 1, PAGE_TOKENS, w[r]);
        bias[r] = -value_offset(kv) * sum;
        step[r] = f->take[row + r] * range / WEIGHT_MAX;
    }
}

INLINE void value_bytes(const rs_kv_format kv, const int rows, const attend_head_args *a, const few *f, size_t row,
                        const uint8_t *v, size_t tokens, ptrdiff_t ahead) {
    const int groups = parts_at_once(rows * (16 / LANES), 2, SUMS_OF_BYTES), vectors = groups * 16 / LANES;
    const size_t lines = kv == RS_KV_Q8_0 ? PAGE_TOKENS / 4 : PAGE_TOKENS / 8;
    const uint8_t *line = v + plane_values_at(kv, a->head_dim);
    _Alignas(64) int16_t w[FEW_BLOCK][PAGE_TOKENS];
    float step[FEW_BLOCK];
    int32_t bias[FEW_BLOCK];
    const size_t block = plane_block(kv, a->head_dim);
    for (size_t b = 0; b < a->head_dim / block; b++) {
        block_weights(kv, rows, f, row, v, b, tokens, w, step, bias);
        for (size_t d = b * block; d < (b + 1) * block; d += (size_t)groups * 16) {
            vi sum[FEW_BLOCK][64 / LANES];
            for (int r = 0; r < rows; r++) {
                for (int j = 0; j < vectors; j++) sum[r][j] = bias[r] - (vi){0};
            }
            stream_bytes(kv, rows, groups, line, lines * 64, lines, w[0], PAGE_TOKENS, ahead, sum);
            line += groups * lines * 64;
            for (int r = 0; r < rows; r++) {
                float *out = a->out + (row + r) * a->out_stride + d;
                for (int j = 0; j < vectors; j++)
                    store(out + j * LANES, load(out + j * LANES) * f->keep[row + r] + to_float(sum[r][j]) * step[r]);
            }
        }
    }
}

#endif
