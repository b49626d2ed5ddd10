/* cache.h: the KV pages of one session on one rank.
 *
 * K (after RoPE, with its absolute position) and V live in pages of PAGE_TOKENS tokens x one layer x the rank's KV
 * heads, in one run of memory a layer. A layer that sees the whole context has a slot for each page the rank owns; a
 * layer with a sliding window reuses slots in a ring just long enough for the window and one chunk. */
#ifndef RS_KV_CACHE_H
#define RS_KV_CACHE_H

#include "device/device.h"
#include "kv/deal.h"
#include "model/shard.h"

typedef struct kv_cache {
    const hparams *h;
    const deal *deal;
    uint32_t rank;     /* as the deal counts: 0 when the rank holds every page */
    range layers;      /* held here */
    uint32_t kv_heads; /* held here */
    kv_type kv;
    size_t page_bytes;
    uint32_t slots_full, slots_window; /* of a layer of either kind */
    uint8_t **base;                    /* [layers held] first page of each */
} kv_cache;

/* Pages that a layer with a sliding window may need at once while `chunk` tokens are evaluated, all ranks together. */
uint32_t kv_window_pages(const hparams *h, uint32_t chunk);

/* Takes the pages from the arena. The deal must be filled in also when measuring. */
void kv_layout(kv_cache *c, arena *a, const hparams *h, const deal *d, uint32_t rank, const shard *own, kv_type kv,
               uint32_t chunk);

/* The memory of page `page` (owned by this rank) of `layer` (held by it). */
uint8_t *kv_page(const kv_cache *c, uint32_t layer, uint32_t page);

/* Pages that queries at positions first.. of a layer can see start here. */
uint32_t kv_first_page(const hparams *h, uint32_t layer, uint32_t first_position);

/* Lists up to `capacity` of `rank`'s pages of a layer, from page `*next` on, of a context of `length` tokens; *next is
 * moved behind the last one listed. data is set for this cache's own rank only. Returns how many. */
size_t kv_list(const kv_cache *c, uint32_t rank, uint32_t layer, uint32_t length, uint32_t *next, page_ref *out,
               size_t capacity);

/* How much of a timeline that is rewound to `position` tokens can be kept, after it once was `longest` tokens long: all
 * of it, or nothing when a ring has overwritten pages that the next token's window needs. The same on every rank. */
uint32_t kv_keep(const hparams *h, const deal *d, uint32_t chunk, uint32_t position, uint32_t longest);

/* Fills the first `length` tokens with pseudo-random rows of unit variance that depend on the seed, the layer, the page
 * (every sixteenth is alike) and the head, not on the rank. kv_head_first: the absolute number of the first head held.
 * RS_NO_MEMORY. */
rs_status kv_fill(const kv_cache *c, device *d, uint32_t length, uint32_t kv_head_first, uint64_t seed);

#endif
