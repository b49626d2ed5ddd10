/* weights.c: tensors by name and shape, and slices of layers. */
#include "model/weights.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Counts what was found, so that a tensor nobody asked for (a bias, say) is not silently left out of the arithmetic. */
typedef struct binder {
    const gguf *file;
    bool *used; /* [gguf_tensor_count] */
} binder;

static const gguf_tensor *find(const binder *b, const char *name) {
    const gguf_tensor *t = gguf_tensor_find(b->file, name);
    if (t != NULL) b->used[t - gguf_tensor_at(b->file, 0)] = true;
    return t;
}

/* The tensor "blk.<layer>.<name>.<suffix>", or NULL. */
static const gguf_tensor *find_in_layer(const binder *b, uint32_t layer, const char *name, const char *suffix,
                                        char full[80]) {
    snprintf(full, 80, "blk.%u.%s.%s", layer, name, suffix);
    return find(b, full);
}

static rs_status as_matrix(const gguf_tensor *t, const char *name, uint64_t rows, uint64_t cols, matrix *out) {
    if (t == NULL) return status_fail(RS_BAD_FORMAT, "the file lacks the tensor %s", name);
    if (t->dims > 2 || t->shape[0] != cols || t->shape[1] != rows) {
        return status_fail(RS_BAD_FORMAT, "tensor %s is [%llu, %llu], expected [%llu, %llu]", name,
                           (unsigned long long)t->shape[1], (unsigned long long)t->shape[0], (unsigned long long)rows,
                           (unsigned long long)cols);
    }
    *out = (matrix){t->data, rows, cols, format_bytes(t->format, cols), t->format};
    return RS_OK;
}

static rs_status as_vector(const gguf_tensor *t, const char *name, uint64_t n, const float **out) {
    if (t == NULL) return status_fail(RS_BAD_FORMAT, "the file lacks the tensor %s", name);
    if (t->dims != 1 || t->shape[0] != n) {
        return status_fail(RS_BAD_FORMAT, "tensor %s has %llu values, expected %llu", name,
                           (unsigned long long)t->shape[0], (unsigned long long)n);
    }
    if (t->format != FORMAT_F32 || (uintptr_t)t->data % sizeof(float) != 0) {
        return status_fail(RS_UNSUPPORTED, "tensor %s is not aligned F32, as norms and biases are", name);
    }
    *out = (const float *)(const void *)t->data;
    return RS_OK;
}

static rs_status bind_matrix(const binder *b, uint32_t layer, const char *name, uint64_t rows, uint64_t cols,
                             matrix *out) {
    char full[80];
    const gguf_tensor *t = find_in_layer(b, layer, name, "weight", full);
    return as_matrix(t, full, rows, cols, out);
}

static rs_status bind_vector(const binder *b, uint32_t layer, const char *name, const char *suffix, uint64_t n,
                             const float **out) {
    char full[80];
    const gguf_tensor *t = find_in_layer(b, layer, name, suffix, full);
    return as_vector(t, full, n, out);
}

static rs_status bind_layer(const binder *b, const hparams *h, uint32_t i, layer_weights *l) {
    uint64_t q_dim = (uint64_t)h->heads * h->head_dim, kv_dim = (uint64_t)h->kv_heads * h->head_dim;
    const arch *a = h->arch;
    RS_TRY(bind_vector(b, i, "attn_norm", "weight", h->dim, &l->attn_norm));
    RS_TRY(bind_vector(b, i, "ffn_norm", "weight", h->dim, &l->ffn_norm));
    RS_TRY(bind_matrix(b, i, "attn_q", q_dim, h->dim, &l->q));
    RS_TRY(bind_matrix(b, i, "attn_k", kv_dim, h->dim, &l->k));
    RS_TRY(bind_matrix(b, i, "attn_v", kv_dim, h->dim, &l->v));
    RS_TRY(bind_matrix(b, i, "attn_output", h->dim, q_dim, &l->o));
    RS_TRY(bind_matrix(b, i, "ffn_gate", h->ffn_dim, h->dim, &l->gate));
    RS_TRY(bind_matrix(b, i, "ffn_up", h->ffn_dim, h->dim, &l->up));
    RS_TRY(bind_matrix(b, i, "ffn_down", h->dim, h->ffn_dim, &l->down));
    if (a->qkv_bias) {
        RS_TRY(bind_vector(b, i, "attn_q", "bias", q_dim, &l->q_bias));
        RS_TRY(bind_vector(b, i, "attn_k", "bias", kv_dim, &l->k_bias));
        RS_TRY(bind_vector(b, i, "attn_v", "bias", kv_dim, &l->v_bias));
    }
    if (a->qk_norm) {
        RS_TRY(bind_vector(b, i, "attn_q_norm", "weight", h->head_dim, &l->q_norm));
        RS_TRY(bind_vector(b, i, "attn_k_norm", "weight", h->head_dim, &l->k_norm));
    }
    if (a->sandwich_norms) {
        RS_TRY(bind_vector(b, i, "post_attention_norm", "weight", h->dim, &l->attn_post_norm));
        RS_TRY(bind_vector(b, i, "post_ffw_norm", "weight", h->dim, &l->ffn_post_norm));
    }
    return RS_OK;
}

static rs_status bind_all(const binder *b, hparams *h, weights *w) {
    const gguf_tensor *embedding = find(b, "token_embd.weight"), *output = find(b, "output.weight");
    if (embedding != NULL && (embedding->shape[1] < 1 || embedding->shape[1] > INT32_MAX)) {
        return status_fail(RS_BAD_FORMAT, "token_embd.weight has an impossible number of rows");
    }
    h->vocab = embedding ? (uint32_t)embedding->shape[1] : 0;
    RS_TRY(as_matrix(embedding, "token_embd.weight", h->vocab, h->dim, &w->embedding));
    w->output = w->embedding;
    if (output != NULL) RS_TRY(as_matrix(output, "output.weight", h->vocab, h->dim, &w->output));
    RS_TRY(as_vector(find(b, "output_norm.weight"), "output_norm.weight", h->dim, &w->norm));
    w->layers = calloc(h->layers, sizeof *w->layers);
    if (w->layers == NULL) return status_fail(RS_NO_MEMORY, "no memory for %u layers", h->layers);
    for (uint32_t i = 0; i < h->layers; i++) RS_TRY(bind_layer(b, h, i, &w->layers[i]));
    find(b, "rope_freqs.weight"); /* read with the hyperparameters */
    for (size_t i = 0; i < gguf_tensor_count(b->file); i++) {
        str name = gguf_tensor_at(b->file, i)->name;
        if (!b->used[i]) {
            return status_fail(RS_UNSUPPORTED, "the tensor %.*s is no part of a %s model as known here",
                               (int)(name.bytes < 64 ? name.bytes : 64), name.data, h->arch->name);
        }
    }
    return RS_OK;
}

rs_status weights_bind(const gguf *file, hparams *h, weights *out) {
    binder b = {file, calloc(gguf_tensor_count(file) + 1, sizeof(bool))};
    if (b.used == NULL) return status_fail(RS_NO_MEMORY, "no memory to check the tensors");
    weights w = {0};
    rs_status status = bind_all(&b, h, &w);
    free(b.used);
    if (status != RS_OK) {
        weights_free(&w);
        return status;
    }
    *out = w;
    return RS_OK;
}

void weights_free(weights *w) {
    free(w->layers);
    *w = (weights){0};
}

static const float *vector_from(const float *v, size_t begin) {
    return v ? v + begin : NULL;
}

layer_weights layer_slice(const layer_weights *whole, const hparams *h, range heads, range kv_heads, range o_heads,
                          range ffn) {
    size_t d = h->head_dim;
    layer_weights l = *whole;
    l.q = matrix_rows(&whole->q, heads.begin * d, heads.end * d);
    l.k = matrix_rows(&whole->k, kv_heads.begin * d, kv_heads.end * d);
    l.v = matrix_rows(&whole->v, kv_heads.begin * d, kv_heads.end * d);
    l.q_bias = vector_from(whole->q_bias, heads.begin * d);
    l.k_bias = vector_from(whole->k_bias, kv_heads.begin * d);
    l.v_bias = vector_from(whole->v_bias, kv_heads.begin * d);
    l.o = matrix_cols(&whole->o, o_heads.begin * d, o_heads.end * d);
    l.gate = matrix_rows(&whole->gate, ffn.begin, ffn.end);
    l.up = matrix_rows(&whole->up, ffn.begin, ffn.end);
    l.down = matrix_cols(&whole->down, ffn.begin, ffn.end);
    return l;
}

static uint64_t matrix_bytes(const matrix *m) {
    return (uint64_t)m->rows * format_bytes(m->format, m->cols);
}

uint64_t layer_bytes(const layer_weights *l) {
    return matrix_bytes(&l->q) + matrix_bytes(&l->k) + matrix_bytes(&l->v) + matrix_bytes(&l->o) +
           matrix_bytes(&l->gate) + matrix_bytes(&l->up) + matrix_bytes(&l->down);
}
