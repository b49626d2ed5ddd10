/* weights.h: a model's tensors by role, as const views of the mapped file, and slices of them. */
#ifndef RS_MODEL_WEIGHTS_H
#define RS_MODEL_WEIGHTS_H

#include "model/arch.h"

/* Half-open. */
typedef struct range {
    uint32_t begin, end;
} range;

static inline uint32_t range_count(range r) {
    return r.end - r.begin;
}

/* A layer, or a rank's slice of it. Vectors are NULL where the family has none; matrices are [out, in]. */
typedef struct layer_weights {
    const float *attn_norm, *ffn_norm;           /* [dim] */
    const float *attn_post_norm, *ffn_post_norm; /* [dim] */
    const float *q_norm, *k_norm;                /* [head_dim] */
    const float *q_bias, *k_bias, *v_bias;       /* [rows of q, k, v] */
    matrix q;                                    /* [heads * head_dim, dim] */
    matrix k, v;                                 /* [kv_heads * head_dim, dim] */
    matrix o;                                    /* [dim, heads * head_dim] */
    matrix gate, up;                             /* [ffn_dim, dim] */
    matrix down;                                 /* [dim, ffn_dim] */
} layer_weights;

typedef struct weights {
    matrix embedding;  /* [vocab, dim] */
    matrix output;     /* [vocab, dim]; the embedding when the file ties them */
    const float *norm; /* [dim] */
    layer_weights *layers;
} weights;

/* Finds and checks every tensor, and sets h->vocab. RS_BAD_FORMAT for a missing tensor or a wrong shape. Views live as
 * long as the file; release with weights_free. */
rs_status weights_bind(const gguf *file, hparams *h, weights *out);
void weights_free(weights *w);

/* The part of a layer that heads, kv_heads, o's input heads and ffn select. */
layer_weights layer_slice(const layer_weights *whole, const hparams *h, range heads, range kv_heads, range o_heads,
                          range ffn);

/* Bytes of a layer's (or slice's) matrices. */
uint64_t layer_bytes(const layer_weights *l);

#endif
