/* cache.c: where pages lie, and which of them a query sees. */
#include "kv/cache.h"

#include <assert.h>
#include <stdlib.h>

#include "base/random.h"

enum { FILL_KINDS = 16 }; /* random pages of a layer that differ: making one takes much longer than storing it */

uint32_t kv_window_pages(const hparams *h, uint32_t chunk) {
    /* window - 1 + chunk consecutive tokens, at any alignment. */
    return (h->window + chunk + PAGE_TOKENS - 3) / PAGE_TOKENS + 1;
}

static uint32_t window_slots(const hparams *h, const deal *d, uint32_t rank, uint32_t chunk) {
    return deal_most(d, rank, kv_window_pages(h, chunk));
}

void kv_layout(kv_cache *c, arena *a, const hparams *h, const deal *d, uint32_t rank, const shard *own, kv_type kv,
               uint32_t chunk) {
    *c = (kv_cache){
        .h = h, .deal = d, .rank = rank, .layers = own->layers, .kv_heads = range_count(own->kv_held), .kv = kv};
    c->page_bytes = page_bytes(kv, c->kv_heads, h->head_dim);
    c->slots_full = deal_count(d, rank, d->pages);
    c->slots_window = h->window > 0 ? window_slots(h, d, rank, chunk) : 0;
    c->base = arena_take(a, range_count(c->layers), sizeof *c->base);
    for (uint32_t i = 0; i < range_count(c->layers); i++) {
        uint32_t slots = hparams_slides(h, c->layers.begin + i) ? c->slots_window : c->slots_full;
        uint8_t *base = arena_take(a, slots, c->page_bytes);
        if (c->base != NULL) c->base[i] = base;
    }
}

uint8_t *kv_page(const kv_cache *c, uint32_t layer, uint32_t page) {
    assert(c->deal->owner[page] == c->rank && layer >= c->layers.begin && layer < c->layers.end);
    uint32_t slot = c->deal->ordinal[page];
    if (hparams_slides(c->h, layer)) slot %= c->slots_window;
    return c->base[layer - c->layers.begin] + slot * c->page_bytes;
}

/* The page where the window of a query at `position` begins. */
static uint32_t window_page(const hparams *h, uint32_t position) {
    return position < h->window ? 0 : (position + 1 - h->window) / PAGE_TOKENS;
}

uint32_t kv_first_page(const hparams *h, uint32_t layer, uint32_t first_position) {
    return hparams_slides(h, layer) ? window_page(h, first_position) : 0;
}

size_t kv_list(const kv_cache *c, uint32_t rank, uint32_t layer, uint32_t length, uint32_t *next, page_ref *out,
               size_t capacity) {
    size_t n = 0;
    uint32_t page = *next, end = pages_of(length);
    for (; page < end && n < capacity; page++) {
        if (c->deal->owner[page] != rank) continue;
        uint32_t position = page * PAGE_TOKENS, count = length - position;
        out[n++] = (page_ref){rank == c->rank ? kv_page(c, layer, page) : NULL, (int32_t)position,
                              (int32_t)(count < PAGE_TOKENS ? count : PAGE_TOKENS)};
    }
    *next = page;
    return n;
}

uint32_t kv_keep(const hparams *h, const deal *d, uint32_t chunk, uint32_t position, uint32_t longest) {
    if (h->window == 0 || position == 0) return position;
    uint32_t first = window_page(h, position);
    uint32_t end = pages_of(position), written = pages_of(longest);
    for (uint32_t page = first; page < end; page++) {
        uint32_t owner = d->owner[page];
        if (deal_count(d, owner, written) > d->ordinal[page] + window_slots(h, d, owner, chunk)) return 0;
    }
    return position;
}

/* Random rows [PAGE_TOKENS, kv_heads, head_dim] of one kind of page; `what` tells K from V. */
static void random_rows(float *rows, const kv_cache *c, uint32_t layer, uint32_t kind, uint32_t kv_head_first,
                        unsigned what, uint64_t seed) {
    size_t head_dim = c->h->head_dim;
    for (uint32_t head = 0; head < c->kv_heads; head++) {
        uint64_t state = seed + what;
        state = random_next(&state) + layer;
        state = random_next(&state) + kind;
        state = random_next(&state) + kv_head_first + head;
        for (size_t t = 0; t < PAGE_TOKENS; t++) {
            float *row = rows + (t * c->kv_heads + head) * head_dim;
            /* Uniform with variance 1: sqrt(12) * (u - 1/2). */
            for (size_t i = 0; i < head_dim; i++) row[i] = 3.4641016f * ((float)random_unit(&state) - 0.5f);
        }
    }
}

/* Stores the same rows into each of this rank's pages of a kind. */
static void fill_kind(const kv_cache *c, device *d, uint32_t length, uint32_t layer, uint32_t kind, const float *k,
                      const float *v) {
    uint8_t *pages[PAGE_TOKENS];
    int32_t position[PAGE_TOKENS];
    for (uint32_t page = kind; page < pages_of(length); page += FILL_KINDS) {
        if (c->deal->owner[page] != c->rank) continue;
        for (uint32_t t = 0; t < PAGE_TOKENS; t++) {
            pages[t] = kv_page(c, layer, page);
            position[t] = (int32_t)(page * PAGE_TOKENS + t);
        }
        append_args args = {pages,       position,       k,    v, PAGE_TOKENS, (size_t)c->kv_heads * c->h->head_dim,
                            c->kv_heads, c->h->head_dim, c->kv};
        d->ops->append(d, &args);
    }
}

rs_status kv_fill(const kv_cache *c, device *d, uint32_t length, uint32_t kv_head_first, uint64_t seed) {
    size_t row = (size_t)c->kv_heads * c->h->head_dim;
    if (row == 0) return RS_OK;
    float *k = malloc(PAGE_TOKENS * row * sizeof *k), *v = malloc(PAGE_TOKENS * row * sizeof *v);
    for (uint32_t layer = c->layers.begin; k != NULL && v != NULL && layer < c->layers.end; layer++) {
        for (uint32_t kind = 0; kind < FILL_KINDS && kind < pages_of(length); kind++) {
            random_rows(k, c, layer, kind, kv_head_first, 1, seed);
            random_rows(v, c, layer, kind, kv_head_first, 2, seed);
            fill_kind(c, d, length, layer, kind, k, v);
        }
    }
    rs_status status = k != NULL && v != NULL ? RS_OK : status_fail(RS_NO_MEMORY, "no memory to fill the KV cache");
    free(k);
    free(v);
    return status;
}
