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

typedef struct sharding {
    rs_split split; /* never RS_SPLIT_AUTO */
    uint32_t ranks;
    double shares[RS_RANKS_MAX];        /* of pages; all > 0 */
    double weight_shares[RS_RANKS_MAX]; /* of weights; 0 for a rank that keeps KV only */
    shard of[RS_RANKS_MAX];
    /* What follows from the ranges, the same on every rank: */
    bool pages_dealt; /* each rank holds the pages dealt to it, else all pages of its layers and heads */
    bool qkv_sliced;  /* projections are gathered before attention */
    bool o_sliced;    /* attention is exchanged by heads, and the output projection summed */
    bool ffn_sliced;  /* the FFN's output is summed */
} sharding;

/* Fills in who has what. Slices are cut in proportion to weight_shares (all 0: to shares), at the boundaries of
 * quantisation blocks. RS_BAD_ARGUMENT for shares that are negative, infinite or partly missing, and for a weight share
 * of 0 where a split gives every rank weights. */
rs_status sharding_make(const hparams *h, const weights *w, rs_split split, uint32_t ranks, const double *shares,
                        const double *weight_shares, sharding *out);

/* Bytes of weights that a rank reads for one token. */
uint64_t sharding_weight_bytes(const sharding *s, const hparams *h, const weights *w, uint32_t rank);

#endif
