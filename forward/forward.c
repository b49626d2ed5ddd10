/* forward.c: a step: rows, embeddings, layers, logits; and the memory it needs. */
#include "forward/forward.h"

#include <math.h>
#include <string.h>

bool forward_spreads(const model_view *m, uint32_t count) {
    return m->s->rows_spread && count > m->travel_rows;
}

size_t forward_portion(const model_view *m) {
    return size_max(1, PORTION_PAGES / m->s->ranks);
}

/* The most rows of a step in which every rank carries all. */
static size_t travel_rows(const model_view *m) {
    return m->s->rows_spread ? size_min(m->travel_rows, m->chunk) : m->chunk;
}

/* The most rows of a rank among `tokens` consecutive ones of a step whose rows are spread. */
static size_t rows_among(const model_view *m, uint32_t rank, uint32_t tokens) {
    if (!forward_spreads(m, m->chunk)) return 0;
    uint32_t span = (tokens + PAGE_TOKENS - 2) / PAGE_TOKENS + 1;
    return size_min(tokens, (size_t)deal_most(m->deal, rank, span) * PAGE_TOKENS);
}

/* Rows of all ranks whose queries travel at once. */
static uint32_t query_rows(const model_view *m) {
    return forward_spreads(m, m->chunk) ? (uint32_t)size_min(QUERY_ROWS, m->chunk) : 0;
}

/* The most of those that are one rank's. */
static size_t query_rows_of_one(const model_view *m) {
    size_t most = 0;
    for (uint32_t r = 0; r < m->s->ranks; r++) most = size_max(most, rows_among(m, r, query_rows(m)));
    return most;
}

/* The most rows of a step that a rank carries. */
static size_t own_rows(const model_view *m, uint32_t rank) {
    return size_max(travel_rows(m), rows_among(m, rank, m->chunk));
}

/* Floats of partial sums received at once. From what all ranks share alone, since it sets the pieces in which
 * comm_reduce goes. */
static size_t reduce_floats(const model_view *m) {
    const sharding *s = m->s;
    if (s->ranks == 1 || !(s->o_sliced || s->ffn_sliced)) return 0;
    size_t row = (size_t)s->ranks * m->h->dim;
    return size_min(travel_rows(m) * row, size_max(row, REDUCE_FLOATS));
}

/* Floats that travel to (send) and from (receive) the other ranks at once. */
static void wire_floats(const model_view *m, uint32_t rank, size_t *send, size_t *receive) {
    const hparams *h = m->h;
    const sharding *s = m->s;
    *send = *receive = 0;
    if (s->ranks == 1) return;
    const shard *own = &s->of[rank];
    size_t rows = travel_rows(m), d = h->head_dim, heads = shard_heads(own, h), kv_heads = range_count(own->kv_held);
    *receive = reduce_floats(m);
    if (s->qkv_sliced) {
        *send = rows * (range_count(own->heads) + 2 * range_count(own->kv_heads)) * d;
        *receive = size_max(*receive, rows * (heads + 2 * kv_heads) * d);
    }
    if (s->pages_dealt) {
        *send = size_max(*send, rows * heads * (d + 1));
        *receive = size_max(*receive, sharding_parties(s) * rows * range_count(own->o_heads) * (d + 1));
    }
    if (s->rows_spread) {
        size_t portion = forward_portion(m) * page_bytes(m->kv, h->kv_heads, d) / sizeof(float);
        *send = size_max(*send, portion);
        *receive = size_max(*receive, 2 * (s->ranks - 1) * portion);
        size_t queries = query_rows(m) * h->heads, mine = rows_among(m, rank, query_rows(m)) * h->heads;
        *send = size_max(*send, queries * (d + 1));
        *receive = size_max(*receive, size_max(queries * d, (s->ranks - 1) * mine * (d + 1)));
    }
}

void forward_layout(forward_buffers *b, arena *a, const model_view *m, uint32_t rank) {
    const hparams *h = m->h;
    size_t rows = own_rows(m, rank), others = query_rows_of_one(m), pairs = h->rope_dims / 2, f = sizeof(float);
    /* Spread rows meet whole weights; otherwise a rank only ever sees its own part. */
    const shard *own = &m->s->of[rank];
    size_t heads = shard_heads(own, h);
    size_t kv_heads = range_count(own->kv_held);
    size_t gate = size_max(rows_among(m, rank, m->chunk) * h->ffn_dim, travel_rows(m) * range_count(own->ffn));
    *b = (forward_buffers){.rows = rows};
    b->x = arena_take(a, rows * h->dim, f);
    b->h = arena_take(a, rows * h->dim, f);
    b->y = arena_take(a, rows * h->dim, f);
    b->q = arena_take(a, rows * heads * h->head_dim, f);
    b->o = arena_take(a, rows * heads * h->head_dim, f);
    b->k = arena_take(a, rows * kv_heads * h->head_dim, f);
    b->v = arena_take(a, rows * kv_heads * h->head_dim, f);
    b->max = arena_take(a, size_max(rows, others) * heads, f);
    b->sum = arena_take(a, size_max(rows, others) * heads, f);
    b->lse = arena_take(a, rows * heads, f);
    b->gate = arena_take(a, gate, f);
    for (int i = 0; i < (h->window > 0 ? 2 : 1); i++) {
        b->cosine[i] = arena_take(a, rows * pairs, f);
        b->sine[i] = arena_take(a, rows * pairs, f);
    }
    b->position = arena_take(a, rows, sizeof *b->position);
    b->other_position = arena_take(a, others, sizeof *b->other_position);
    b->token = arena_take(a, rows, sizeof *b->token);
    b->page = arena_take(a, rows, sizeof *b->page);
    b->list_max = size_max(deal_count(m->deal, sharding_party(m->s, rank), m->deal->pages),
                           m->s->rows_spread ? 2 * m->s->ranks * forward_portion(m) : 0);
    b->list = arena_take(a, b->list_max, sizeof *b->list);
    b->logits = arena_take(a, h->vocab, f);
    size_t send, receive, before = a->used;
    wire_floats(m, rank, &send, &receive);
    b->send = arena_take(a, send, f);
    b->receive = arena_take(a, receive, f);
    b->reduce_floats = reduce_floats(m);
    size_t stream = forward_spreads(m, m->chunk) ? stream_bytes(m, rank) : 0;
    for (int i = 0; i < 2; i++) b->stream[i] = arena_take(a, stream, 1);
    b->wire_bytes = a->used - before;
}

device_limits forward_limits(const model_view *m, uint32_t rank) {
    const hparams *h = m->h;
    size_t cols = size_max(size_max(h->dim, h->ffn_dim), (size_t)h->heads * h->head_dim);
    size_t rows = size_max(own_rows(m, rank), query_rows_of_one(m));
    return (device_limits){rows, cols, h->heads, h->kv_heads, h->head_dim};
}

/* Chooses this rank's rows and fills in their tokens and positions. */
static void take_rows(forward *f, const step *s, bool spread) {
    forward_buffers *b = &f->b;
    f->rows = 0;
    for (uint32_t i = 0; i < s->count; i++) {
        uint32_t position = s->first + i;
        if (spread && f->m->deal->owner[position / PAGE_TOKENS] != f->rank) continue;
        b->token[f->rows] = s->tokens[i];
        b->position[f->rows++] = (int32_t)position;
    }
}

/* cos and sin [rows, pairs] of the rows' angles, in double until the end: at a million tokens a float angle is off by
 * a tenth. */
static void rotate_tables(forward *f, const rope_table *table, float *cosine, float *sine) {
    size_t pairs = f->m->h->rope_dims / 2;
    for (size_t r = 0; r < f->rows; r++) {
        for (size_t i = 0; i < pairs; i++) {
            double angle = f->b.position[r] * table->frequency[i];
            cosine[r * pairs + i] = (float)cos(angle) * table->magnitude;
            sine[r * pairs + i] = (float)sin(angle) * table->magnitude;
        }
    }
}

/* Brings the last token's row to b->x[0] of the ranks that make logits, and tells whether this is one of them. */
static rs_status last_row(forward *f, const step *s, bool spread) {
    const hparams *h = f->m->h;
    forward_buffers *b = &f->b;
    size_t bytes = h->dim * sizeof(float);
    if (f->rows > 1) memmove(b->x, b->x + (f->rows - 1) * h->dim, bytes);
    if (!spread) return RS_OK;
    uint32_t owner = f->m->deal->owner[(s->first + s->count - 1) / PAGE_TOKENS];
    comm_part parts[RS_RANKS_MAX] = {0};
    if (f->rank != owner) parts[owner] = (comm_part){b->x, bytes};
    return comm_gather(f->c, b->x, f->rank == owner ? bytes : 0, parts);
}

/* Logits of the row in b->x[0]: each rank multiplies its slice of the vocabulary, rank 0 collects them. */
static rs_status output(forward *f) {
    const hparams *h = f->m->h;
    forward_buffers *b = &f->b;
    range own = f->own->vocab;
    if (range_count(own) > 0) {
        const product logits = {&f->weights.output, NULL, b->logits + own.begin, range_count(own)};
        f->d->ops->rms_norm(f->d, b->x, f->m->w->norm, h->norm_eps, b->h, 1, h->dim);
        f->d->ops->matmul(f->d, &logits, 1, b->h, h->dim, 1);
    }
    comm_part out[RS_RANKS_MAX] = {0}, in[RS_RANKS_MAX] = {0};
    if (f->rank != 0) out[0] = (comm_part){b->logits + own.begin, range_count(own) * sizeof(float)};
    for (uint32_t p = 1; f->rank == 0 && p < f->c->ranks; p++) {
        range part = f->m->s->of[p].vocab;
        in[p] = (comm_part){b->logits + part.begin, range_count(part) * sizeof(float)};
    }
    return f->c->exchange(f->c, out, in);
}

/* The layers with this rank's slices; spread rows of ranks that share the file meet all weights there. */
static rs_status run_layers(forward *f, const step *s, bool spread) {
    range layers = f->own->layers;
    bool shared = spread && !f->m->packed;
    for (uint32_t i = layers.begin; i < layers.end; i++) {
        const layer_weights *l = shared ? &f->m->w->layers[i] : &f->weights.layers[i - layers.begin];
        RS_TRY(layer_attention(f, s, i, spread, l, 1));
        RS_TRY(layer_ffn(f, spread, l, 1));
    }
    return RS_OK;
}

/* The layers of spread rows with all weights, those of other ranks as they come. The next layer's are on their way
 * while this one's FFN is computed: attention has exchanges of its own, which on a network that carries one byte after
 * another would wait until the weights have gone by. */
static rs_status stream_layers(forward *f, const step *s) {
    layer_weights parts[RS_RANKS_MAX];
    RS_TRY(stream_begin(f, 0));
    for (uint32_t layer = 0; layer < f->m->h->layers; layer++) {
        RS_TRY(stream_finish(f, layer, parts));
        RS_TRY(layer_attention(f, s, layer, true, parts, f->c->ranks));
        if (layer + 1 < f->m->h->layers) RS_TRY(stream_begin(f, layer + 1));
        RS_TRY(layer_ffn(f, true, parts, f->c->ranks));
    }
    return RS_OK;
}

rs_status forward_step(forward *f, const step *s) {
    const hparams *h = f->m->h;
    forward_buffers *b = &f->b;
    bool spread = forward_spreads(f->m, s->count), pipeline = f->m->s->split == RS_SPLIT_PP;
    take_rows(f, s, spread);
    rotate_tables(f, &h->rope_global, b->cosine[0], b->sine[0]);
    if (h->window > 0) rotate_tables(f, &h->rope_local, b->cosine[1], b->sine[1]);

    size_t bytes = f->rows * h->dim * sizeof(float);
    if (pipeline && f->rank > 0) {
        RS_TRY(comm_hop(f->c, f->rank - 1, f->rank, b->x, bytes));
    } else {
        f->d->ops->embed(f->d, &f->m->w->embedding, b->token, f->rows, h->embed_scale, b->x);
    }
    RS_TRY(spread && stream_needed(f->m) ? stream_layers(f, s) : run_layers(f, s, spread));
    if (pipeline && f->rank + 1 < f->c->ranks) RS_TRY(comm_hop(f->c, f->rank, f->rank + 1, b->x, bytes));
    if (!s->want_logits) return RS_OK;
    RS_TRY(last_row(f, s, spread));
    return output(f);
}
