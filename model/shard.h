/* shard.h: who computes and holds what, for every way of splitting a model over ranks. One description serves
 * replicated, sliced, tensor-parallel and pipeline-parallel weights; the forward pass follows it without asking for the
 * name of the split. */
#ifndef RS_MODEL_SHARD_H
#define RS_MODEL_SHARD_H

#include "model/weights.h"

/* One rank's part. Ranges may be empty. */
typedef struct shard {
    range layers;   /* that it runs and whose KV it holds */
    range heads;    /* query heads it projects */
    range kv_heads; /* KV heads it projects */
    range o_heads;  /* heads that it brings into the output projection */
    range ffn;      /* hidden units of the FFN */
    range vocab;    /* rows of the output matrix */
    range kv_held;  /* KV heads whose pages it holds */
} shard;

/* Query heads whose attention a rank computes: those of the KV heads it holds. */
static inline uint32_t shard_heads(const shard *s, const hparams *h) {
    return range_count(s->kv_held) * (h->heads / h->kv_heads);
}

typedef struct sharding {
    rs_split split; /* never RS_SPLIT_AUTO */
    uint32_t ranks;
    uint32_t tpa;                       /* parts that the KV heads are cut into: ranks in tp, 1 to that in r3 and r4 */
    double shares[RS_RANKS_MAX];        /* of pages; all > 0 */
    double weight_shares[RS_RANKS_MAX]; /* of weights; 0 for a rank that keeps KV only */
    shard of[RS_RANKS_MAX];
    /* What follows from the ranges, the same on every rank: */
    bool pages_dealt; /* each rank holds the pages dealt to it, else all pages of its layers and heads */
    bool rows_spread; /* rows of a prompt may be dealt like the pages: each rank holds all heads of its pages */
    bool qkv_sliced;  /* projections are gathered before attention */
    bool o_sliced;    /* attention is exchanged by heads, and the output projection summed */
    bool ffn_sliced;  /* the FFN's output is summed */
} sharding;

/* Whether a split can cut the KV heads into tpa parts, 1 or more. */
bool sharding_cuts(const hparams *h, rs_split split, uint32_t ranks, uint32_t tpa);

/* Fills in who has what. Slices are cut in proportion to weight_shares (all 0: to shares), at the boundaries of
 * quantisation blocks. With tpa above 1 (0: 1) in r3 and r4, groups of ranks / tpa neighbours hold the same KV heads
 * and share the context: N = TPA x KVP (Helix, arXiv:2507.07120). RS_BAD_ARGUMENT for shares that are negative,
 * infinite or partly missing, for a weight share of 0 where a split gives every rank weights, and for a tpa that does
 * not divide the ranks, exceeds the KV heads or belongs to another split. */
rs_status sharding_make(const hparams *h, const weights *w, rs_split split, uint32_t ranks, uint32_t tpa,
                        const double *shares, const double *weight_shares, sharding *out);

/* Those who hold the same KV heads as a rank, the rank among them. */
range sharding_group(const sharding *s, uint32_t rank);

/* Where pages are dealt: to how many, whom of them a rank is, and their shares [parties]. Elsewhere every rank is the
 * one that has them all. */
uint32_t sharding_parties(const sharding *s);
uint32_t sharding_party(const sharding *s, uint32_t rank);
void sharding_party_shares(const sharding *s, double *shares);

/* Bytes of weights that a rank reads for one token. */
uint64_t sharding_weight_bytes(const sharding *s, const hparams *h, const weights *w, uint32_t rank);

#endif
