/* attention.c: exact attention over a context whose pages lie on several ranks. */
#include <string.h>

#include "forward/forward.h"

/* Some rows of a step: of this rank, or of another whose queries came here. */
typedef struct query_rows {
    const float *q; /* [rows, heads, head_dim] */
    const int32_t *position;
    size_t rows, heads;
    attend_state state;
} query_rows;

/* Joins what the listed pages give to the rows' open state. */
static void attend(forward *f, uint32_t layer, const query_rows *r, size_t n_pages) {
    const hparams *h = f->m->h;
    attend_args args = {
        .q = r->q,
        .position = r->position,
        .rows = r->rows,
        .heads = r->heads,
        .kv_heads = f->kv->kv_heads,
        .head_dim = h->head_dim,
        .window = hparams_slides(h, layer) ? (int32_t)h->window : 0,
        .kv = f->m->kv,
        .pages = f->b.list,
        .n_pages = n_pages,
        .state = r->state,
    };
    f->d->ops->attend(f->d, &args);
}

/* Lists this rank's own pages that a step sees. */
static size_t list_own(forward *f, const step *s, uint32_t layer) {
    uint32_t next = kv_first_page(f->m->h, layer, s->first);
    return kv_list(f->kv, f->kv->rank, layer, s->first + s->count, &next, f->b.list, f->b.list_max);
}

/* Attends to the listed pages alone: o (the state's out) and lse [rows, heads]. */
static void attend_whole(forward *f, uint32_t layer, const query_rows *r, size_t n_pages, float *lse) {
    f->d->ops->attend_begin(f->d, r->state, r->rows, r->heads, f->m->h->head_dim);
    attend(f, layer, r, n_pages);
    f->d->ops->attend_finish(f->d, r->state, lse, r->rows, r->heads, f->m->h->head_dim);
}

/* Sends the next portion of this rank's pages of a layer to all others, in the background, and lists the portion: `own`
 * pages where they are, then `others` in rank order where they will be, from `place` on. */
static rs_status begin_portion(forward *f, const step *s, uint32_t layer, uint32_t next[], uint8_t *place,
                               page_ref *list, size_t *own, size_t *others) {
    comm_part out[RS_RANKS_MAX], in[RS_RANKS_MAX];
    size_t portion = forward_portion(f->m), bytes = f->kv->page_bytes;
    uint32_t end = s->first + s->count;
    uint8_t *send = (uint8_t *)f->b.send;
    *own = kv_list(f->kv, f->rank, layer, end, &next[f->rank], list, portion);
    for (size_t i = 0; i < *own; i++) memcpy(send + i * bytes, list[i].data, bytes);
    list += *own;
    *others = 0;
    for (uint32_t p = 0; p < f->c->ranks; p++) {
        size_t n = p == f->rank ? 0 : kv_list(f->kv, p, layer, end, &next[p], list, portion);
        out[p] = (comm_part){send, *own * bytes};
        in[p] = (comm_part){place, n * bytes};
        for (size_t i = 0; i < n; i++, place += bytes) list[i].data = place;
        list += n;
        *others += n;
    }
    return f->c->begin(f->c, LANE_PAGES, out, in);
}

/* Rows are here, pages come: every rank sends its pages of this layer to all others, a portion at a time. While one
 * travels the rank attends to its own pages of that and to the others' of the one before. So the order of merging
 * depends on the deal alone, not on when pages arrive. */
static rs_status attend_travelling(forward *f, const step *s, uint32_t layer, const query_rows *mine) {
    uint32_t next[RS_RANKS_MAX];
    page_ref *list = f->b.list;
    uint8_t *receive = (uint8_t *)f->b.receive;
    size_t half = (f->c->ranks - 1) * forward_portion(f->m) * f->kv->page_bytes, at = 0, arrived = 0, own, others;
    for (uint32_t p = 0; p < f->c->ranks; p++) next[p] = kv_first_page(f->m->h, layer, s->first);
    do {
        RS_TRY(begin_portion(f, s, layer, next, receive + at, list + arrived, &own, &others));
        attend(f, layer, mine, arrived + own);
        RS_TRY(f->c->finish(f->c, LANE_PAGES));
        memmove(list, list + arrived + own, others * sizeof *list);
        arrived = others;
        at = half - at;
    } while (own + others > 0);
    return RS_OK;
}

/* Positions of a rank's rows among tokens [begin, end); NULL: only counts them. */
static size_t rows_of(const deal *d, uint32_t rank, uint32_t begin, uint32_t end, int32_t *position) {
    size_t n = 0;
    for (uint32_t i = begin; i < end; i++) {
        if (d->owner[i / PAGE_TOKENS] != rank) continue;
        if (position != NULL) position[n] = (int32_t)i;
        n++;
    }
    return n;
}

/* Sends this rank's queries among tokens [begin, end) to all others, and lists theirs. */
static rs_status gather_queries(forward *f, range tokens, const query_rows *mine, query_rows theirs[]) {
    forward_buffers *b = &f->b;
    comm_part parts[RS_RANKS_MAX];
    float *place = b->receive;
    for (uint32_t p = 0; p < f->c->ranks; p++) {
        size_t rows = rows_of(f->m->deal, p, tokens.begin, tokens.end, NULL);
        size_t floats = rows * mine->heads * f->m->h->head_dim;
        theirs[p] = (query_rows){place, b->other_position, rows, mine->heads, {b->max, b->sum, NULL}};
        parts[p] = (comm_part){place, floats * sizeof(float)};
        if (p != f->rank) place += floats;
    }
    return comm_gather(f->c, mine->q, parts[f->rank].bytes, parts);
}

/* Pages are here, rows come: every rank attends to its own pages with the rows of all ranks among tokens [begin, end),
 * and sends back what it found. `mine` are those of this rank; their state ends up closed, with lse [rows, heads]. */
static rs_status attend_visited(forward *f, const step *s, uint32_t layer, range tokens, const query_rows *mine,
                                float *lse) {
    forward_buffers *b = &f->b;
    query_rows theirs[RS_RANKS_MAX];
    comm_part out[RS_RANKS_MAX], in[RS_RANKS_MAX];
    size_t heads = mine->heads, head_dim = f->m->h->head_dim, n_pages = list_own(f, s, layer);
    RS_TRY(gather_queries(f, tokens, mine, theirs));
    float *answer = b->send; /* o [rows, heads, head_dim], then lse [rows, heads] */
    for (uint32_t p = 0; p < f->c->ranks; p++) {
        if (p == f->rank) continue;
        size_t states = theirs[p].rows * heads;
        theirs[p].state.out = answer;
        rows_of(f->m->deal, p, tokens.begin, tokens.end, b->other_position);
        attend_whole(f, layer, &theirs[p], n_pages, answer + states * head_dim);
        out[p] = (comm_part){answer, states * (head_dim + 1) * sizeof(float)};
        answer += states * (head_dim + 1);
    }
    attend_whole(f, layer, mine, n_pages, lse);
    size_t states = mine->rows * heads;
    for (uint32_t p = 0, i = 0; p < f->c->ranks; p++) {
        float *place = b->receive + i * states * (head_dim + 1); /* over queries that are done with */
        in[p] = (comm_part){place, states * (head_dim + 1) * sizeof(float)};
        i += p != f->rank;
    }
    RS_TRY(f->c->exchange(f->c, out, in));
    for (uint32_t p = 0; p < f->c->ranks; p++) {
        const float *o = in[p].data;
        if (p == f->rank) continue;
        f->d->ops->merge(f->d, mine->state.out, lse, o, o + states * head_dim, mine->rows, heads, head_dim);
    }
    return RS_OK;
}

/* The same for the whole step, a portion of its tokens at a time. */
static rs_status attend_visiting(forward *f, const step *s, uint32_t layer, size_t heads) {
    forward_buffers *b = &f->b;
    size_t row = 0, width = heads * f->m->h->head_dim;
    uint32_t end = s->first + s->count;
    for (uint32_t at = s->first; at < end; at += QUERY_ROWS) {
        range tokens = {at, (uint32_t)size_min(at + QUERY_ROWS, end)};
        size_t n = rows_of(f->m->deal, f->rank, tokens.begin, tokens.end, NULL);
        query_rows mine = {b->q + row * width, b->position + row, n, heads, {b->max, b->sum, b->o + row * width}};
        RS_TRY(attend_visited(f, s, layer, tokens, &mine, b->lse + row * heads));
        row += n;
    }
    return RS_OK;
}

/* Copies heads `part` of o [rows, heads held, head_dim] and lse [rows, heads held] to `to`: o's part, then lse's. */
static void pack(const forward *f, range part, float *to) {
    size_t heads = shard_heads(f->own, f->m->h), head_dim = f->m->h->head_dim, n = range_count(part);
    size_t first = f->own->kv_held.begin * (f->m->h->heads / f->m->h->kv_heads);
    float *lse = to + f->rows * n * head_dim;
    if (f->c->dry) return;
    for (size_t r = 0; r < f->rows; r++) {
        size_t from = r * heads + part.begin - first;
        memcpy(to + r * n * head_dim, f->b.o + from * head_dim, n * head_dim * sizeof(float));
        memcpy(lse + r * n, f->b.lse + from, n * sizeof(float));
    }
}

/* Every rank sends each other rank of its group the partial results of the heads that one brings into the output
 * projection, and merges what it gets for its own, in rank order so that all ranks that merge the same heads get the
 * same bits. */
static rs_status merge_ranks(forward *f, float **o) {
    const hparams *h = f->m->h;
    const sharding *cut = f->m->s;
    forward_buffers *b = &f->b;
    range group = sharding_group(cut, f->rank);
    size_t vectors = f->rows * h->head_dim, own = range_count(f->own->o_heads), stride = own * (vectors + f->rows);
    comm_part out[RS_RANKS_MAX] = {0}, in[RS_RANKS_MAX] = {0};
    float *place = b->send;
    for (uint32_t p = group.begin; p < group.end; p++) {
        range part = cut->of[p].o_heads;
        size_t floats = range_count(part) * (vectors + f->rows);
        in[p] = (comm_part){b->receive + (p - group.begin) * stride, stride * sizeof(float)};
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
    *o = in[group.begin].data;
    for (uint32_t p = group.begin + 1; p < group.end; p++) {
        const float *part = in[p].data;
        f->d->ops->merge(f->d, *o, *o + own * vectors, part, part + own * vectors, f->rows, own, h->head_dim);
    }
    return RS_OK;
}

rs_status attention_run(forward *f, const step *s, uint32_t layer, bool spread, float **o) {
    const hparams *h = f->m->h;
    forward_buffers *b = &f->b;
    size_t heads = shard_heads(f->own, h);
    query_rows mine = {b->q, b->position, f->rows, heads, {b->max, b->sum, b->o}};
    *o = b->o;
    if (!spread) {
        attend_whole(f, layer, &mine, list_own(f, s, layer), b->lse);
        if (f->m->s->pages_dealt) {
            RS_TRY(merge_ranks(f, o));
            heads = range_count(f->own->o_heads);
        }
    } else if (travel_as_queries(f->m, s, layer)) {
        RS_TRY(attend_visiting(f, s, layer, heads));
    } else {
        f->d->ops->attend_begin(f->d, mine.state, f->rows, heads, h->head_dim);
        RS_TRY(attend_travelling(f, s, layer, &mine));
        f->d->ops->attend_finish(f->d, mine.state, b->lse, f->rows, heads, h->head_dim);
    }
    if (f->m->kv.v != RS_KV_F16) f->d->ops->hadamard(f->d, *o, f->rows * heads, h->head_dim);
    return RS_OK;
}
