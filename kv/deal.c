/* deal.c: pages dealt to ranks in proportion to their shares. */
#include "kv/deal.h"

void deal_layout(deal *d, arena *a, uint32_t ranks, uint32_t pages) {
    *d = (deal){ranks, pages, NULL, NULL};
    d->owner = arena_take(a, pages, sizeof *d->owner);
    d->ordinal = arena_take(a, pages, sizeof *d->ordinal);
}

void deal_fill(deal *d, const double *shares) {
    uint32_t count[RS_RANKS_MAX] = {0};
    for (uint32_t p = 0; p < d->pages; p++) {
        uint32_t best = 0;
        for (uint32_t r = 1; r < d->ranks; r++) {
            if ((count[r] + 1) / shares[r] < (count[best] + 1) / shares[best]) best = r;
        }
        d->owner[p] = (uint8_t)best;
        d->ordinal[p] = count[best]++;
    }
}

uint32_t deal_most(const deal *d, uint32_t rank, uint32_t span) {
    uint32_t in_span = 0, most = 0;
    for (uint32_t p = 0; p < d->pages; p++) {
        in_span += d->owner[p] == rank;
        if (p >= span) in_span -= d->owner[p - span] == rank;
        if (in_span > most) most = in_span;
    }
    return most;
}

uint32_t deal_count(const deal *d, uint32_t rank, uint32_t pages) {
    for (uint32_t p = pages; p > 0; p--) {
        if (d->owner[p - 1] == rank) return d->ordinal[p - 1] + 1;
    }
    return 0;
}
