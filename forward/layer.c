/* layer.c: one transformer layer, for every family and every split.
 *
 * With rows spread the rank works with whole weights, in one part or in one of each rank; otherwise with its slices,
 * and sums what they give. */
#include <string.h>

#include "forward/forward.h"

/* Copies [rows, width] floats between rows of different strides. */
static void copy_rows(float *to, size_t to_stride, const float *from, size_t from_stride, size_t rows, size_t width) {
    for (size_t r = 0; r < rows; r++) memcpy(to + r * to_stride, from + r * from_stride, width * sizeof(float));
}

/* Brings together the heads that each rank of the group projected: q, k, v become [rows, heads held, head_dim]. */
static rs_status gather_qkv(forward *f) {
    const size_t head_dim = f->m->h->head_dim;
    forward_buffers *b = &f->b;
    range group = sharding_group(f->m->s, f->rank), kv = f->own->kv_held;
    uint32_t heads = shard_heads(f->own, f->m->h), first = f->m->s->of[group.begin].heads.begin;
    float *const tensors[3] = {b->q, b->k, b->v};
    const size_t widths[3] = {heads * head_dim, range_count(kv) * head_dim, range_count(kv) * head_dim};
    const uint32_t begins[3] = {first, kv.begin, kv.begin};
    /* Each rank's message: its columns of q, then of k, then of v, each [rows, columns]. */
    comm_part out[RS_RANKS_MAX] = {0}, in[RS_RANKS_MAX] = {0};
    float *place = b->receive;
    for (uint32_t p = group.begin; p < group.end; p++) {
        const shard *s = &f->m->s->of[p];
        size_t floats = f->rows * (range_count(s->heads) + 2 * range_count(s->kv_heads)) * head_dim;
        in[p] = (comm_part){place, floats * sizeof(float)};
        place += floats;
    }
    for (uint32_t p = group.begin; p < group.end; p++) out[p] = (comm_part){b->send, in[f->rank].bytes};
    RS_TRY(f->c->exchange(f->c, out, in));
    if (f->c->dry) return RS_OK;
    memcpy(in[f->rank].data, b->send, in[f->rank].bytes);
    for (uint32_t p = group.begin; p < group.end; p++) {
        const shard *s = &f->m->s->of[p];
        const range ranges[3] = {s->heads, s->kv_heads, s->kv_heads};
        const float *from = in[p].data;
        for (int i = 0; i < 3; i++) {
            size_t width = range_count(ranges[i]) * head_dim;
            copy_rows(tensors[i] + (ranges[i].begin - begins[i]) * head_dim, widths[i], from, width, f->rows, width);
            from += f->rows * width;
        }
    }
    return RS_OK;
}

/* Multiplies b->h by q, k and v, whose parts' rows follow each other: [rows, rows of all parts] each. */
static void multiply_qkv(forward *f, const layer_weights *parts, uint32_t n, float *q, float *k, float *v) {
    product list[3 * RS_RANKS_MAX];
    size_t q_rows = 0, kv_rows = 0;
    for (uint32_t p = 0; p < n; p++) {
        const layer_weights *l = &parts[p];
        list[3 * p] = (product){&l->q, l->q_bias, q + q_rows};
        list[3 * p + 1] = (product){&l->k, l->k_bias, k + kv_rows};
        list[3 * p + 2] = (product){&l->v, l->v_bias, v + kv_rows};
        q_rows += l->q.rows;
        kv_rows += l->k.rows;
    }
    for (uint32_t i = 0; i < 3 * n; i++) list[i].y_stride = i % 3 == 0 ? q_rows : kv_rows;
    f->d->ops->matmul(f->d, list, 3 * n, f->b.h, f->m->h->dim, f->rows);
}

/* q, k, v of the normalised rows in b->h: [rows, heads, head_dim], normed, rotated, q scaled. */
static rs_status project(forward *f, const layer_weights *parts, uint32_t n, uint32_t layer, bool spread) {
    const hparams *h = f->m->h;
    const device_ops *op = f->d->ops;
    const layer_weights *l = &parts[0];
    forward_buffers *b = &f->b;
    size_t rows = f->rows, heads = shard_heads(f->own, h), kv_heads = f->kv->kv_heads;
    if (f->m->s->qkv_sliced && !spread) {
        float *k = b->send + rows * l->q.rows;
        multiply_qkv(f, parts, n, b->send, k, k + rows * l->k.rows);
        RS_TRY(gather_qkv(f));
    } else {
        multiply_qkv(f, parts, n, b->q, b->k, b->v);
    }
    if (l->q_norm != NULL) {
        op->rms_norm(f->d, b->q, l->q_norm, h->norm_eps, b->q, rows * heads, h->head_dim);
        op->rms_norm(f->d, b->k, l->k_norm, h->norm_eps, b->k, rows * kv_heads, h->head_dim);
    }
    int local = hparams_slides(h, layer);
    op->rope(f->d, b->q, b->cosine[local], b->sine[local], rows, heads, h->head_dim, h->rope_dims, h->arch->pairs);
    op->rope(f->d, b->k, b->cosine[local], b->sine[local], rows, kv_heads, h->head_dim, h->rope_dims, h->arch->pairs);
    op->scale(f->d, b->q, h->attention_scale, rows * heads * h->head_dim);
    if (f->m->kv.k != RS_KV_F16) {
        op->hadamard(f->d, b->q, rows * heads, h->head_dim);
        op->hadamard(f->d, b->k, rows * kv_heads, h->head_dim);
    }
    if (f->m->kv.v != RS_KV_F16) op->hadamard(f->d, b->v, rows * kv_heads, h->head_dim);
    return RS_OK;
}

/* Writes this step's K and V into the pages that this rank holds. */
static void append(forward *f, uint32_t layer) {
    forward_buffers *b = &f->b;
    for (size_t r = 0; r < f->rows; r++) {
        uint32_t page = (uint32_t)b->position[r] / PAGE_TOKENS;
        b->page[r] = f->kv->deal->owner[page] == f->kv->rank ? kv_page(f->kv, layer, page) : NULL;
    }
    append_args args = {
        b->page,         b->position,       b->k,    b->v, f->rows, (size_t)f->kv->kv_heads * f->m->h->head_dim,
        f->kv->kv_heads, f->m->h->head_dim, f->m->kv};
    f->d->ops->append(f->d, &args);
}

/* y [rows, dim] = in . w^T (or y += that), w in n parts whose columns follow each other. */
static void multiply_columns(forward *f, const matrix *const w[], uint32_t n, const float *in, float *y, bool add) {
    const device_ops *op = f->d->ops;
    size_t cols = 0, begin = 0;
    for (uint32_t p = 0; p < n; p++) cols += w[p]->cols;
    for (uint32_t p = 0; p < n; p++) {
        if (add || p > 0) {
            op->matmul_add(f->d, w[p], in + begin, cols, f->rows, y);
        } else {
            op->matmul(f->d, &(product){w[p], NULL, y, w[p]->rows}, 1, in, cols, f->rows);
        }
        begin += w[p]->cols;
    }
}

/* x += norm(in . w^T), the end of a block; where ranks hold parts of w, these give parts of a sum. */
static rs_status add_block(forward *f, const matrix *const w[], uint32_t n, const float *in, const float *post_norm,
                           bool sums) {
    const hparams *h = f->m->h;
    const device_ops *op = f->d->ops;
    forward_buffers *b = &f->b;
    if (!sums && post_norm == NULL) {
        multiply_columns(f, w, n, in, b->x, true);
        return RS_OK;
    }
    multiply_columns(f, w, n, in, b->y, false);
    if (sums) RS_TRY(comm_reduce(f->c, b->y, f->rows * h->dim, b->receive, b->reduce_floats));
    if (post_norm != NULL) op->rms_norm(f->d, b->y, post_norm, h->norm_eps, b->y, f->rows, h->dim);
    op->add(f->d, b->x, b->y, f->rows * h->dim);
    return RS_OK;
}

/* Fills b->gate [rows, hidden units of all parts]. */
static void multiply_gate(forward *f, const layer_weights *parts, uint32_t n) {
    size_t units = 0, begin = 0;
    for (uint32_t p = 0; p < n; p++) units += parts[p].gate.rows;
    for (uint32_t p = 0; p < n; p++) {
        const layer_weights *l = &parts[p];
        f->d->ops->matmul_gate(f->d, f->m->h->arch->act, &l->gate, &l->up, f->b.h, f->rows, f->b.gate + begin, units);
        begin += l->gate.rows;
    }
}

rs_status layer_attention(forward *f, const step *s, uint32_t layer, bool spread, const layer_weights *parts,
                          uint32_t n) {
    const hparams *h = f->m->h;
    const layer_weights *l = &parts[0]; /* vectors are the same in all */
    const matrix *o_parts[RS_RANKS_MAX];
    forward_buffers *b = &f->b;
    float *o;
    for (uint32_t p = 0; p < n; p++) o_parts[p] = &parts[p].o;
    f->d->ops->rms_norm(f->d, b->x, l->attn_norm, h->norm_eps, b->h, f->rows, h->dim);
    RS_TRY(project(f, parts, n, layer, spread)); /* q [rows, heads, head_dim], k, v [rows, kv_heads, head_dim] */
    append(f, layer);
    RS_TRY(attention_run(f, s, layer, spread, &o)); /* [rows, heads of o, head_dim] */
    return add_block(f, o_parts, n, o, l->attn_post_norm, f->m->s->o_sliced && !spread);
}

rs_status layer_ffn(forward *f, bool spread, const layer_weights *parts, uint32_t n) {
    const hparams *h = f->m->h;
    const layer_weights *l = &parts[0];
    const matrix *down_parts[RS_RANKS_MAX];
    forward_buffers *b = &f->b;
    for (uint32_t p = 0; p < n; p++) down_parts[p] = &parts[p].down;
    f->d->ops->rms_norm(f->d, b->x, l->ffn_norm, h->norm_eps, b->h, f->rows, h->dim);
    multiply_gate(f, parts, n); /* [rows, ffn_dim or a part] */
    return add_block(f, down_parts, n, b->gate, l->ffn_post_norm, f->m->s->ffn_sliced && !spread);
}
