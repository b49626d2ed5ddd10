/* device.h: the operations that a forward pass is made of, on some memory. The layer code calls them through this
 * table; a new device is one more file that fills it in.
 *
 * Operations run in the order they are called and are complete when they return. Arrays are row-major, slowest
 * dimension first, and belong to the caller. One thread at a time uses a device. */
#ifndef RS_DEVICE_DEVICE_H
#define RS_DEVICE_DEVICE_H

#include "base/arena.h"
#include "math/kernels.h"

/* The largest operands a device will meet, from which it sizes its own buffers. */
typedef struct device_limits {
    size_t rows; /* tokens at once */
    size_t cols; /* of any weight matrix */
    size_t heads, kv_heads, head_dim;
} device_limits;

typedef struct kv_type {
    rs_kv_format k, v;
} kv_type;

/* Open softmax of query rows: max, sum [rows, heads]; out [rows, heads, head_dim] (math/kernels.h). */
typedef struct attend_state {
    float *max, *sum, *out;
} attend_state;

typedef struct attend_args {
    const float *q;          /* [rows, heads, head_dim], scaled, rotated where K is */
    const int32_t *position; /* [rows] */
    size_t rows, heads, kv_heads, head_dim;
    int32_t window; /* 0: none */
    kv_type kv;
    const page_ref *pages; /* [n_pages]; order sets the order of summation only */
    size_t n_pages;
    attend_state state; /* joined with what these pages give */
} attend_args;

typedef struct append_args {
    uint8_t *const *pages;   /* [rows] the page of each row, NULL for a row that another rank keeps */
    const int32_t *position; /* [rows] absolute; the token in the page is position % PAGE_TOKENS */
    const float *k, *v;      /* row r at r * stride: [kv_heads, head_dim], rotated already where the format asks */
    size_t rows, stride, kv_heads, head_dim;
    kv_type kv;
} append_args;

/* A matrix that x is multiplied by: y [tokens, w.rows] = x [tokens, w.cols] . w^T + bias. Rows of x and y may be part
 * of longer ones: they are a stride apart. */
typedef struct product {
    const matrix *w;
    const float *bias; /* [w.rows] or NULL */
    float *y;
    size_t y_stride;
} product;

typedef struct device device;
typedef struct device_ops {
    void (*close)(device *d);

    /* x [n, dim] = scale * table[tokens] */
    void (*embed)(device *d, const matrix *table, const int32_t *tokens, size_t n, float scale, float *x);

    /* n products of the same x; matrices without rows do nothing. */
    void (*matmul)(device *d, const product *list, size_t n, const float *x, size_t x_stride, size_t tokens);

    /* y [tokens, w.rows] += x . w^T */
    void (*matmul_add)(device *d, const matrix *w, const float *x, size_t x_stride, size_t tokens, float *y);

    /* y [tokens, gate.rows], rows y_stride apart, = act(x . gate^T) * (x . up^T) */
    void (*matmul_gate)(device *d, activation act, const matrix *gate, const matrix *up, const float *x, size_t tokens,
                        float *y, size_t y_stride);

    /* y = rms_norm(x) over each of `rows` runs of n; y may be x. */
    void (*rms_norm)(device *d, const float *x, const float *weight, float eps, float *y, size_t rows, size_t n);

    /* Rotates x [rows, heads, head_dim] by cos, sin [rows, n_rot / 2]. */
    void (*rope)(device *d, float *x, const float *cos, const float *sin, size_t rows, size_t heads, size_t head_dim,
                 size_t n_rot, rope_pairs pairs);

    void (*add)(device *d, float *y, const float *x, size_t n);
    void (*scale)(device *d, float *y, float s, size_t n);
    void (*hadamard)(device *d, float *x, size_t rows, size_t n);

    /* Quantises rows of K and V into their pages. */
    void (*append)(device *d, const append_args *args);

    /* Empties a state of [rows, heads]. */
    void (*attend_begin)(device *d, attend_state state, size_t rows, size_t heads, size_t head_dim);

    void (*attend)(device *d, const attend_args *args);

    /* Closes the softmax: out /= sum, lse = max + ln sum (-INFINITY and out 0 for an empty state); all [rows,
     * heads...]. */
    void (*attend_finish)(device *d, attend_state state, float *lse, size_t rows, size_t heads, size_t head_dim);

    /* Joins another closed part (o, lse) into this one, exactly: both [rows, heads, head_dim] and [rows, heads]. */
    void (*merge)(device *d, float *o, float *lse, const float *other_o, const float *other_lse, size_t rows,
                  size_t heads, size_t head_dim);
} device_ops;

struct device {
    const device_ops *ops;
};

/* Bytes of one page of `kv_heads` heads. */
size_t page_bytes(kv_type kv, size_t kv_heads, size_t head_dim);

#endif
