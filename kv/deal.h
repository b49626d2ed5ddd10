/* deal.h: which rank owns which page of the context.
 *
 * Page p goes to the rank with the smallest (pages it has + 1) / share, the lowest rank first on a tie. The same deal
 * serves prefill rows, KV pages and decode appends, so that causal work is balanced however the context ends and
 * nothing moves between prefill and decode. */
#ifndef RS_KV_DEAL_H
#define RS_KV_DEAL_H

#include "base/arena.h"
#include "math/kernels.h"

typedef struct deal {
    uint32_t ranks, pages;
    uint8_t *owner;    /* [pages] */
    uint32_t *ordinal; /* [pages] how many earlier pages the owner has */
} deal;

static inline uint32_t pages_of(uint32_t tokens) {
    return tokens / PAGE_TOKENS + (tokens % PAGE_TOKENS != 0);
}

/* Takes the tables from the arena. Then, on a real arena, deal_fill. */
void deal_layout(deal *d, arena *a, uint32_t ranks, uint32_t pages);
void deal_fill(deal *d, const double *shares);

/* The most pages of one rank among any `span` consecutive ones. */
uint32_t deal_most(const deal *d, uint32_t rank, uint32_t span);

/* Pages of a rank among the first `pages`. */
uint32_t deal_count(const deal *d, uint32_t rank, uint32_t pages);

#endif
