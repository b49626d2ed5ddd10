/* kernels.h: the table of compute kernels, one row per instruction set.
 *
 * "ref" accumulates in double and is never optimised: it is the meaning. "portable" is plain C in float, "avx2" and
 * "avx512" are the same for wider vectors. Every set is compared with ref, and timed, by tests/kernel_check.
 * Kernels run on one thread, allocate nothing and have no state; who splits the work over threads is device/cpu.
 * All float arrays are 4-byte aligned at least; lengths may be any value >= 0 unless said. */
#ifndef RS_MATH_KERNELS_H
#define RS_MATH_KERNELS_H

#include <stdbool.h>

#include "math/format.h"
#include "ringspan.h"

enum {
    PAGE_TOKENS = 64, /* tokens of a KV page */
    MATMUL_ROWS = 32, /* callers split a matmul over threads in runs of up to this many rows */
    HEAD_DIM_MAX = 512,
};

typedef enum rope_pairs {
    ROPE_HALVES,    /* (i, i + n/2): NeoX style; qwen2, qwen3, gemma3 */
    ROPE_NEIGHBOURS /* (2i, 2i+1): llama's GGUF order */
} rope_pairs;

typedef enum activation { ACTIVATION_SILU, ACTIVATION_GELU_TANH } activation;

/* One page plane is PAGE_TOKENS rows (of K or of V) of one kv head, head_dim values each. K lies dimension by dimension
 * and V token by token, so that a vector lane is a token when scores are computed and a dimension when values are
 * summed: neither needs sums across lanes.
 *           K                                            V
 *   f16     [head_dim][PAGE_TOKENS] half                 [PAGE_TOKENS][head_dim] half
 *   q8_0    scales, [head_dim][PAGE_TOKENS] int8         scales, [PAGE_TOKENS][head_dim] int8
 *   q4_0    scales, [head_dim/2][PAGE_TOKENS] bytes      scales, [PAGE_TOKENS][head_dim/2] bytes
 * scales are [head_dim/32][PAGE_TOKENS] half; value = scale * q. Byte 16b+j of a q4_0 row (of K: the row's byte in line
 * 16b+j) holds value 32b+j in its low nibble and value 32b+16+j in its high one, stored +8; the caller has
 * Hadamard-rotated the row.
 * Quantised rows: scale = max|x| / 127 (q8_0), or the signed value of largest magnitude / -8 (q4_0) as ggml does,
 * rounded to half (at most 65504) before use; q = x / scale rounded to even (q8_0), floor(x / scale + 8.5) (q4_0),
 * clamped; with a zero scale every q stands for 0. All sets store the same bytes.
 * head_dim is a multiple of 32 for the quantised formats, of 2 for f16. */
typedef enum kv_side { KV_K, KV_V } kv_side;
size_t kv_plane_bytes(rs_kv_format format, size_t head_dim);

/* Some query rows of one kv head against one page. The softmax stays open: the state (max, sum, out) joins pages in any
 * order (online softmax: Milakov, Gimelshein, arXiv:1805.02867).
 * Row r sees page token j when j < page_count and position[r] - window < page_position + j <= position[r]
 * (window 0: no lower bound). A row that sees nothing keeps its state; what lies in tokens from page_count on does not
 * matter. */
typedef struct attend_page_args {
    const float *q; /* row r at q + r * q_stride: [head_dim], already scaled by 1/sqrt(head_dim) */
    size_t rows, q_stride, head_dim;
    const int32_t *position;        /* [rows] absolute position of each query row */
    const uint8_t *k, *v;           /* planes */
    const uint8_t *k_next, *v_next; /* planes of the page that follows, to be fetched meanwhile; or NULL */
    rs_kv_format k_format, v_format;
    int32_t page_position; /* absolute position of the page's first token */
    int32_t page_count;    /* tokens written in it, 1 to PAGE_TOKENS */
    int32_t window;
    float *max; /* row r at max[r * state_stride]: natural-log units; -INFINITY before the first token */
    float *sum; /* row r at sum[r * state_stride]: sum of exp(score - max) */
    float *out; /* row r at out + r * out_stride: sum of exp(score - max) * v; anything while max is -INFINITY */
    size_t state_stride, out_stride;
    float *scratch; /* attend_scratch_floats(rows, head_dim) floats, 64-byte aligned */
} attend_page_args;
size_t attend_scratch_floats(size_t rows, size_t head_dim);

typedef struct kernels {
    const char *name;

    /* y[t * y_stride + r] = sum_c w[r, c] * x[t * x_stride + c] for r in [row_begin, row_end), t in [0, tokens).
     * y is indexed by w's absolute row. How rows are split into calls does not change a bit of the result. scratch:
     * matmul_scratch_floats(cols) floats, 64-byte aligned. */
    void (*matmul)(const matrix *w, size_t row_begin, size_t row_end, const float *x, size_t x_stride, size_t tokens,
                   float *y, size_t y_stride, float *scratch);

    /* The same bits as format_expand. */
    void (*expand)(format f, const void *src, float *dst, size_t values);

    /* y = x / sqrt(mean(x^2) + eps) * weight; y may be x. (RMSNorm: Zhang, Sennrich, arXiv:1910.07467) */
    void (*rms_norm)(const float *x, const float *weight, float eps, float *y, size_t n);

    /* Rotates n_rot (even) leading values of one head by angles whose cosines and sines are cos, sin [n_rot / 2].
     * (RoPE: Su et al., arXiv:2104.09864) */
    void (*rope)(float *x, const float *cos, const float *sin, size_t n_rot, rope_pairs pairs);

    /* gate = act(gate) * up, elementwise. */
    void (*gate)(activation act, float *gate, const float *up, size_t n);

    /* y += x; y *= s. */
    void (*add)(float *y, const float *x, size_t n);
    void (*scale)(float *y, float s, size_t n);

    /* Orthonormal Walsh-Hadamard transform (its own inverse) of each run of the largest power of two that divides n. */
    void (*hadamard)(float *x, size_t n);

    /* Quantises one row x [head_dim] into token `token` of a plane, and back (for checks, snapshots and other devices).
     * Neither rotates. */
    void (*kv_store)(rs_kv_format format, kv_side side, uint8_t *plane, size_t token, const float *x, size_t head_dim);
    void (*kv_load)(rs_kv_format format, kv_side side, const uint8_t *plane, size_t token, float *x, size_t head_dim);

    void (*attend_page)(const attend_page_args *args);

    /* Joins another state into this one, exactly: both are (max, sum, out [head_dim]) of one row and head.
     * Either may be empty (max -INFINITY). */
    void (*merge)(float *max, float *sum, float *out, float other_max, float other_sum, const float *other_out,
                  size_t head_dim);
} kernels;

size_t matmul_scratch_floats(size_t cols);

/* The table called `name`, or the best this CPU runs for NULL. RS_UNSUPPORTED with the list of names that would work.
 */
rs_status kernels_find(const char *name, const kernels **out);

/* All tables this CPU can run, ref first; NULL past the end. Tables the CPU lacks are left out. */
const kernels *kernels_at(size_t index);

#endif
