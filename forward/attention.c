/* attention.c: exact attention over a context whose pages lie on several ranks. */
#include <string.h>

#include "forward/forward.h"

static void attend(forward *f, uint32_t layer, size_t heads, size_t n_pages) {
    const hparams *h = f->m->h;
    forward_buffers *b = &f->b;
    attend_args args = {
        .q = b->q,
        .position = b->position,
        .rows = f->rows,
        .heads = heads,
        .kv_heads = f->kv->kv_heads,
        .head_dim = h->head_dim,
        .window = hparams_slides(h, layer) ? (int32_t)h->window : 0,
        .kv = f->m->kv,
        .pages = b->list,
        .n_pages = n_pages,
        .state = {b->max, b->sum, b->o},
    };
    f->d->ops->attend(f->d, &args);
}

/* Rows are here, pages come: every rank sends its pages of this layer to all others, a portion at a time, and
 * attends to each portion when it is complete. */
static rs_status attend_travelling(forward *f, const step *s, uint32_t layer) {
    const kv_cache *kv = f->kv;
    forward_buffers *b = &f->b;
    uint32_t ranks = f->c->ranks, next[RS_RANKS_MAX];
    size_t portion = forward_portion(f->m);
    for (uint32_t p = 0; p < ranks; p++) next[p] = kv_first_page(f->m->h, layer, s->first);
    uint8_t *send = (uint8_t *)b->send, *receive = (uint8_t *)b->receive;
    for (;;) {
        comm_part parts[RS_RANKS_MAX];
        size_t listed = 0, mine = 0;
        for (uint32_t p = 0; p < ranks; p++) {
            page_ref *list = b->list + listed;
            size_t n = kv_list(kv, p, layer, s->first + s->count, &next[p], list, portion);
            uint8_t *place = receive + p * portion * kv->page_bytes;
            parts[p] = (comm_part){place, n * kv->page_bytes};
            for (size_t i = 0; i < n; i++) {
                if (p == f->rank) {
                    memcpy(send + i * kv->page_bytes, list[i].data, kv->page_bytes);
                } else {
                    list[i].data = place + i * kv->page_bytes;
                }
            }
            if (p == f->rank) mine = n;
            listed += n;
        }
        if (listed == 0) return RS_OK;
        RS_TRY(comm_gather(f->c, send, mine * kv->page_bytes, parts));
        attend(f, layer, f->m->h->heads, listed);
    }
}

/* Rows are everywhere, pages stay: each rank attends to its own. */
static void attend_resident(forward *f, const step *s, uint32_t layer, size_t heads) {
    uint32_t next = kv_first_page(f->m->h, layer, s->first);
    size_t n = kv_list(f->kv, f->kv->rank, layer, s->first + s->count, &next, f->b.list, f->b.list_max);
    attend(f, layer, heads, n);
}

/* Copies heads `part` of o [rows, heads, head_dim] and lse [rows, heads] to `to`: o's part, then lse's. */
static void pack(const forward *f, range part, float *to) {
    size_t heads = f->m->h->heads, head_dim = f->m->h->head_dim, n = range_count(part);
    float *lse = to + f->rows * n * head_dim;
    for (size_t r = 0; r < f->rows; r++) {
        size_t from = r * heads + part.begin;
        memcpy(to + r * n * head_dim, f->b.o + from * head_dim, n * head_dim * sizeof(float));
        memcpy(lse + r * n, f->b.lse + from, n * sizeof(float));
    }
}

/* Every rank sends each other rank the partial results of the heads that one brings into the output projection, and
 * merges what it gets for its own, in rank order so that all ranks that merge the same heads get the same bits. */
static rs_status merge_ranks(forward *f, float **o) {
    const hparams *h = f->m->h;
    const sharding *cut = f->m->s;
    forward_buffers *b = &f->b;
    size_t vectors = f->rows * h->head_dim, own = range_count(f->own->o_heads), stride = own * (vectors + f->rows);
    comm_part out[RS_RANKS_MAX], in[RS_RANKS_MAX];
    float *place = b->send;
    for (uint32_t p = 0; p < f->c->ranks; p++) {
        range part = cut->of[p].o_heads;
        size_t floats = range_count(part) * (vectors + f->rows);
        in[p] = (comm_part){b->receive + p * stride, stride * sizeof(float)};
        if (p == f->rank) {
            pack(f, part, in[p].data);
        } else if (!cut->o_sliced && place != b->send) {
            out[p] = (comm_part){b->send, floats * sizeof(float)}; /* all get the same */
            continue;
        } else {
            pack(f, part, place);
        }
        out[p] = (comm_part){place, floats * sizeof(float)};
        if (p != f->rank) place += floats;
    }
    RS_TRY(f->c->exchange(f->c, out, in));
    *o = in[0].data;
    for (uint32_t p = 1; p < f->c->ranks; p++) {
        const float *part = in[p].data;
        f->d->ops->merge(f->d, *o, *o + own * vectors, part, part + own * vectors, f->rows, own, h->head_dim);
    }
    return RS_OK;
}

rs_status attention_run(forward *f, const step *s, uint32_t layer, bool spread, float **o) {
    const hparams *h = f->m->h;
    forward_buffers *b = &f->b;
    size_t heads = forward_heads(f, spread);
    attend_state state = {b->max, b->sum, b->o};
    f->d->ops->attend_begin(f->d, state, f->rows, heads, h->head_dim);
    if (spread) {
        RS_TRY(attend_travelling(f, s, layer));
    } else {
        attend_resident(f, s, layer, heads);
    }
    f->d->ops->attend_finish(f->d, state, b->lse, f->rows, heads, h->head_dim);
    *o = b->o;
    if (f->m->s->pages_dealt && !spread) {
        RS_TRY(merge_ranks(f, o));
        heads = range_count(f->own->o_heads);
    }
    if (f->m->kv.v != RS_KV_F16) f->d->ops->hadamard(f->d, *o, f->rows * heads, h->head_dim);
    return RS_OK;
}
