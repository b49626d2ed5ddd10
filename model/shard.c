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

/* The n shares of `all`, cut at multiples of `unit` from its begin on (the last range ends with it). Boundaries are
 * rounded from the running sum, so that no rounding adds up. Shares that are all 0 leave everything to the last. */
static void cut(range all, uint32_t unit, const double *shares, uint32_t n, range out[]) {
    double sum = 0.0, before = 0.0;
    for (uint32_t i = 0; i < n; i++) sum += shares[i];
    uint32_t total = range_count(all), units = (total + unit - 1) / unit, begin = 0;
    for (uint32_t i = 0; i < n; i++) {
        before += shares[i];
        uint32_t end = i + 1 == n ? units : sum > 0.0 ? (uint32_t)lround(units * (before / sum)) : 0;
        out[i] = (range){begin * unit, end * unit < total ? end * unit : total};
        if (out[i].begin > out[i].end) out[i].begin = out[i].end;
        out[i].begin += all.begin;
        out[i].end += all.begin;
        begin = end;
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

/* One group's heads: `query` and `kv` are those that all of it attend to. */
static void cut_group(sharding *s, range ranks, range query, range kv, uint32_t o_unit) {
    range o[RS_RANKS_MAX], q[RS_RANKS_MAX], k[RS_RANKS_MAX];
    const double *shares = s->weight_shares + ranks.begin;
    uint32_t n = range_count(ranks);
    cut(query, o_unit, shares, n, o);
    cut(query, 1, shares, n, q);
    cut(kv, 1, shares, n, k);
    for (uint32_t i = 0; i < n; i++) {
        shard *own = &s->of[ranks.begin + i];
        own->kv_held = kv;
        own->o_heads = o[i];
        own->heads = s->qkv_sliced ? q[i] : query;
        own->kv_heads = s->qkv_sliced ? k[i] : kv;
    }
}

/* Cuts the KV heads, with their query heads, over groups of ranks, then each group's projections over its ranks. */
static void cut_heads(sharding *s, const hparams *h, const weights *w) {
    range cuts[RS_RANKS_MAX] = {{0, h->heads}};
    double shares[RS_RANKS_MAX] = {0};
    uint32_t together = h->heads / h->kv_heads, of_group = s->ranks / s->tpa;
    for (uint32_t r = 0; r < s->ranks; r++) shares[r / of_group] += s->weight_shares[r];
    if (s->tpa > 1) cut((range){0, h->heads}, head_unit(h, w, together), shares, s->tpa, cuts);
    for (uint32_t g = 0; g < s->tpa; g++) {
        range kv = {cuts[g].begin / together, cuts[g].end / together};
        cut_group(s, (range){g * of_group, (g + 1) * of_group}, cuts[g], kv, head_unit(h, w, 1));
    }
}

bool sharding_cuts(const hparams *h, rs_split split, uint32_t ranks, uint32_t tpa) {
    if (tpa == 1) return true;
    return (split == RS_SPLIT_R3 || split == RS_SPLIT_R4) && ranks % tpa == 0 && tpa < ranks && tpa <= h->kv_heads;
}

static rs_status take_tpa(sharding *s, const hparams *h, uint32_t tpa) {
    s->tpa = s->split == RS_SPLIT_TP ? s->ranks : 1;
    if (tpa <= 1) return RS_OK;
    if (sharding_cuts(h, s->split, s->ranks, tpa)) {
        s->tpa = tpa;
        return RS_OK;
    }
    if (s->split != RS_SPLIT_R3 && s->split != RS_SPLIT_R4) {
        return status_fail(RS_BAD_ARGUMENT, "KV heads are cut into %u parts (tpa) in splits r3 and r4 alone", tpa);
    }
    return status_fail(RS_BAD_ARGUMENT,
                       "KV heads cannot be cut into %u parts (tpa): of %u ranks and %u KV heads, a smaller divisor of "
                       "the ranks can; split tp gives each rank a part",
                       tpa, s->ranks, h->kv_heads);
}

range sharding_group(const sharding *s, uint32_t rank) {
    uint32_t of_group = s->ranks / s->tpa, begin = rank - rank % of_group;
    return (range){begin, begin + of_group};
}

uint32_t sharding_parties(const sharding *s) {
    return s->pages_dealt ? s->ranks / s->tpa : 1;
}

uint32_t sharding_party(const sharding *s, uint32_t rank) {
    return rank % sharding_parties(s);
}

void sharding_party_shares(const sharding *s, double *shares) {
    uint32_t parties = sharding_parties(s);
    for (uint32_t p = 0; p < parties; p++) shares[p] = 0.0;
    for (uint32_t r = 0; r < s->ranks; r++) shares[r % parties] += s->shares[r];
}

rs_status sharding_make(const hparams *h, const weights *w, rs_split split, uint32_t ranks, uint32_t tpa,
                        const double *shares, const double *weight_shares, sharding *out) {
    sharding s = {.ranks = ranks};
    RS_TRY(take_shares(&s, shares));
    /* Local ranks exchange at memory speed, so auto slices everything; one rank is the split that slices nothing. */
    s.split = ranks == 1 ? RS_SPLIT_R1 : split == RS_SPLIT_AUTO ? RS_SPLIT_R4 : split;
    RS_TRY(take_weight_shares(&s, weight_shares));
    RS_TRY(take_tpa(&s, h, tpa));
    bool tp = s.split == RS_SPLIT_TP, pp = s.split == RS_SPLIT_PP;
    s.pages_dealt = ranks > 1 && !tp && !pp;
    s.rows_spread = s.pages_dealt && s.tpa == 1;
    s.qkv_sliced = s.split == RS_SPLIT_R4;
    s.o_sliced = tp || s.split == RS_SPLIT_R4 || s.split == RS_SPLIT_R3;
    s.ffn_sliced = s.o_sliced || s.split == RS_SPLIT_R2;
    range all_heads = {0, h->heads}, all_kv = {0, h->kv_heads}, cuts[RS_RANKS_MAX];
    for (uint32_t r = 0; r < ranks; r++) {
        s.of[r] = (shard){{0, h->layers}, all_heads, all_kv, all_heads, {0, h->ffn_dim}, {0, h->vocab}, all_kv};
    }
    if (s.o_sliced) cut_heads(&s, h, w);
    if (s.ffn_sliced) {
        cut((range){0, h->ffn_dim}, ffn_unit(h, w), s.weight_shares, ranks, cuts);
        for (uint32_t r = 0; r < ranks; r++) s.of[r].ffn = cuts[r];
        cut((range){0, h->vocab}, 1, s.weight_shares, ranks, cuts);
        for (uint32_t r = 0; r < ranks; r++) s.of[r].vocab = cuts[r];
    }
    if (pp) {
        cut((range){0, h->layers}, 1, s.weight_shares, ranks, cuts);
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
