/* travel.c: bytes that would go between the ranks, and which way they are fewer. Every rank decides from what all ranks
 * share, and so alike. All figures are bytes that all ranks together receive. */
#include "forward/forward.h"

/* Of one row in one layer, where every rank carries all rows: partial sums, projections, partial attentions. Sums are
 * counted in halves, as comm_reduce takes so many rows as matter here; between two ranks either way is as much. */
static uint64_t row_bytes(const model_view *m) {
    const hparams *h = m->h;
    const sharding *s = m->s;
    uint64_t floats = 2 * (uint64_t)h->dim * ((uint64_t)s->o_sliced + s->ffn_sliced);
    if (s->qkv_sliced) floats += ((uint64_t)h->heads + 2 * h->kv_heads) * h->head_dim;
    for (uint32_t r = 0; r < s->ranks; r++) floats += (uint64_t)range_count(s->of[r].o_heads) * (h->head_dim + 1);
    return (s->ranks - 1) * floats * sizeof(float);
}

uint32_t travel_rows_best(const model_view *m) {
    uint64_t slices_bytes = 0;
    if (!stream_needed(m)) return TRAVEL_ROWS;
    for (uint32_t layer = 0; layer < m->h->layers; layer++) {
        for (uint32_t r = 0; r < m->s->ranks; r++)
            slices_bytes += (m->s->ranks - 1) * stream_message_bytes(m, layer, r);
    }
    uint64_t rows = slices_bytes / (m->h->layers * row_bytes(m));
    return (uint32_t)size_max(TRAVEL_ROWS, size_min(rows, UINT32_MAX));
}

bool travel_as_queries(const model_view *m, const step *s, uint32_t layer) {
    const hparams *h = m->h;
    uint64_t q = (uint64_t)h->heads * h->head_dim, others = m->s->ranks - 1;
    uint64_t pages = pages_of(s->first + s->count) - kv_first_page(h, layer, s->first);
    uint64_t page = page_bytes(m->kv, h->kv_heads, h->head_dim);
    return others * s->count * (2 * q + h->heads) * sizeof(float) < others * pages * page;
}
