/* shard.c: cuts a model into the ranks' parts. */
#include "model/shard.h"

#include <math.h>

static const range none = {0, 0};

static uint32_t gcd(uint32_t a, uint32_t b) {
    while (b != 0) {
        uint32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* The ranks' shares of [0, total), cut at multiples of `unit` (the last range ends at total). Boundaries are rounded
 * from the running sum, so that no rounding adds up. */
static void cut(uint32_t total, uint32_t unit, const sharding *s, range out[]) {
    double sum = 0.0, before = 0.0;
    for (uint32_t r = 0; r < s->ranks; r++) sum += s->weight_shares[r];
    uint32_t units = (total + unit - 1) / unit, begin = 0;
    for (uint32_t r = 0; r < s->ranks; r++) {
        before += s->weight_shares[r];
        uint32_t end = r + 1 == s->ranks ? units : (uint32_t)lround(units * (before / sum));
        out[r] = (range){begin * unit, end * unit < total ? end * unit : total};
        begin = end;
    }
    for (uint32_t r = 0; r < s->ranks; r++) {
        if (out[r].begin > out[r].end) out[r].begin = out[r].end;
    }
}

/* The smallest number of heads whose columns of the output projection end at a block boundary. */
static uint32_t head_unit(const hparams *h, const weights *w, uint32_t heads_together) {
    uint32_t unit = heads_together;
    for (uint32_t i = 0; i < h->layers; i++) {
        uint32_t block = format_describe(w->layers[i].o.format).block_values;
        uint32_t columns = unit * h->head_dim;
        unit *= block / gcd(block, columns);
    }
    return unit;
}

static uint32_t ffn_unit(const hparams *h, const weights *w) {
    uint32_t unit = 1;
    for (uint32_t i = 0; i < h->layers; i++) {
        uint32_t block = format_describe(w->layers[i].down.format).block_values;
        unit *= block / gcd(block, unit);
    }
    return unit;
}

static rs_status sum_shares(const sharding *s, const double *shares, double *sum) {
    *sum = 0.0;
    for (uint32_t r = 0; r < s->ranks; r++) {
        if (!isfinite(shares[r]) || shares[r] < 0.0) {
            return status_fail(RS_BAD_ARGUMENT, "the share %g of rank %u is not a positive number", shares[r], r);
        }
        *sum += shares[r];
    }
    return RS_OK;
}

/* Only sliced projections let a rank do without weights: it then gets its queries from the others. */
static rs_status take_weight_shares(sharding *s, const double *shares) {
    double sum;
    RS_TRY(sum_shares(s, shares, &sum));
    for (uint32_t r = 0; r < s->ranks; r++) {
        if (sum > 0.0 && shares[r] == 0.0 && s->split != RS_SPLIT_R4) {
            return status_fail(RS_BAD_ARGUMENT,
                               "rank %u has a weight share of 0: only split r4 has ranks that keep KV alone (r1, r2 "
                               "and r3 give every rank the Q, K and V projections; with tp and pp KV follows the "
                               "weights)",
                               r);
        }
        s->weight_shares[r] = sum > 0.0 ? shares[r] : s->shares[r];
    }
    return RS_OK;
}

static rs_status take_shares(sharding *s, const double *shares) {
    double sum;
    RS_TRY(sum_shares(s, shares, &sum));
    for (uint32_t r = 0; r < s->ranks; r++) {
        if (sum > 0.0 && shares[r] == 0.0) {
            return status_fail(RS_BAD_ARGUMENT, "rank %u of %u has no share; give one positive share per rank", r,
                               s->ranks);
        }
        s->shares[r] = sum > 0.0 ? shares[r] : 1.0;
    }
    return RS_OK;
}

static void cut_heads(sharding *s, const hparams *h, const weights *w) {
    range cuts[RS_RANKS_MAX], kv_cuts[RS_RANKS_MAX];
    uint32_t group = h->heads / h->kv_heads;
    bool tp = s->split == RS_SPLIT_TP;
    if (s->o_sliced) {
        cut(h->heads, head_unit(h, w, tp ? group : 1), s, cuts);
        for (uint32_t r = 0; r < s->ranks; r++) s->of[r].o_heads = cuts[r];
    }
    if (tp) {
        for (uint32_t r = 0; r < s->ranks; r++) {
            s->of[r].heads = cuts[r];
            s->of[r].kv_held = s->of[r].kv_heads = (range){cuts[r].begin / group, cuts[r].end / group};
        }
    } else if (s->qkv_sliced) {
        cut(h->heads, 1, s, cuts);
        cut(h->kv_heads, 1, s, kv_cuts);
        for (uint32_t r = 0; r < s->ranks; r++) {
            s->of[r].heads = cuts[r];
            s->of[r].kv_heads = kv_cuts[r];
        }
    }
}

rs_status sharding_make(const hparams *h, const weights *w, rs_split split, uint32_t ranks, const double *shares,
                        const double *weight_shares, sharding *out) {
    sharding s = {.ranks = ranks};
    RS_TRY(take_shares(&s, shares));
    /* Local ranks exchange at memory speed, so auto slices everything; one rank is the split that slices nothing. */
    s.split = ranks == 1 ? RS_SPLIT_R1 : split == RS_SPLIT_AUTO ? RS_SPLIT_R4 : split;
    RS_TRY(take_weight_shares(&s, weight_shares));
    bool tp = s.split == RS_SPLIT_TP, pp = s.split == RS_SPLIT_PP;
    s.pages_dealt = ranks > 1 && !tp && !pp;
    s.qkv_sliced = s.split == RS_SPLIT_R4;
    s.o_sliced = tp || s.split == RS_SPLIT_R4 || s.split == RS_SPLIT_R3;
    s.ffn_sliced = s.o_sliced || s.split == RS_SPLIT_R2;
    range all_heads = {0, h->heads}, all_kv = {0, h->kv_heads}, cuts[RS_RANKS_MAX];
    for (uint32_t r = 0; r < ranks; r++) {
        s.of[r] = (shard){{0, h->layers}, all_heads, all_kv, all_heads, {0, h->ffn_dim}, {0, h->vocab}, all_kv};
    }
    cut_heads(&s, h, w);
    if (s.ffn_sliced) {
        cut(h->ffn_dim, ffn_unit(h, w), &s, cuts);
        for (uint32_t r = 0; r < ranks; r++) s.of[r].ffn = cuts[r];
        cut(h->vocab, 1, &s, cuts);
        for (uint32_t r = 0; r < ranks; r++) s.of[r].vocab = cuts[r];
    }
    if (pp) {
        cut(h->layers, 1, &s, cuts);
        for (uint32_t r = 0; r < ranks; r++) {
            s.of[r].layers = cuts[r];
            if (r + 1 < ranks) s.of[r].vocab = none;
        }
    } else if (s.split == RS_SPLIT_R1) {
        for (uint32_t r = 1; r < ranks; r++) s.of[r].vocab = none; /* only the first rank's logits are used */
    }
    *out = s;
    return RS_OK;
}

uint64_t sharding_weight_bytes(const sharding *s, const hparams *h, const weights *w, uint32_t rank) {
    const shard *own = &s->of[rank];
    uint64_t bytes = (uint64_t)range_count(own->vocab) * w->output.row_bytes;
    for (uint32_t i = own->layers.begin; i < own->layers.end; i++) {
        layer_weights l = layer_slice(&w->layers[i], h, own->heads, own->kv_heads, own->o_heads, own->ffn);
        bytes += layer_bytes(&l);
    }
    return bytes;
}
