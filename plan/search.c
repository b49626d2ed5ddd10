/* search.c: prices every way to put a model on machines and takes the fastest that fits. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "comm/ucx.h"
#include "device/dry.h"
#include "plan/budget.h"
#include "plan/price.h"

enum {
    FIT_ROUNDS = 32, /* of moving shares away from machines without room */
    CHUNK_LEAST = 512,
    CHUNK_MOST = 4096,        /* tried; longer ones hide nothing more */
    CONTEXT_SOUGHT = 1 << 24, /* tokens: the largest context is sought up to here */
    COUNT_ALL = 8,            /* every number of ranks is tried up to this, then some */
};
static const double share_least = 1e-6; /* of all, for a rank that must have some */
static const double shrink = 0.995;     /* a little more than needed is moved: shares are rounded to pages and blocks */

typedef struct search {
    const rs_model *model;
    const rs_machines *machines;
    rs_options given;
    const uint32_t *depths;
    size_t n_depths;
    rs_price *list;
    size_t capacity, count;
    uint64_t program;               /* bytes of code, libraries and tokenizer */
    uint64_t limit;                 /* of a local cluster's process */
    uint32_t order[RS_RANKS_MAX];   /* machines, fastest first */
    double weights_s[RS_RANKS_MAX]; /* of each machine in this order: to read all weights, */
    double kv_byte_s[RS_RANKS_MAX]; /* and for a byte of K and one of V */
    bool uneven;                    /* they differ in that */
} search;

/* Whose share shrinks first on a machine without room. */
typedef enum relief { PAGES_FIRST, WEIGHTS_FIRST, RELIEFS } relief;

/* ---- Machines ---- */

static double product_s(const rs_machine *m, const matrix *w) {
    return dry_product_s(&m->all, w->format, w->rows, w->cols, 1);
}

static double all_weights_s(const rs_model *model, const rs_machine *m) {
    double sum = product_s(m, &model->w.output);
    for (uint32_t i = 0; i < model->h.layers; i++) {
        const layer_weights *l = &model->w.layers[i];
        sum += product_s(m, &l->q) + product_s(m, &l->k) + product_s(m, &l->v) + product_s(m, &l->o) +
               product_s(m, &l->gate) + product_s(m, &l->up) + product_s(m, &l->down);
    }
    return sum;
}

static double kv_byte_s(const search *s, const rs_machine *m) {
    size_t group = s->model->h.heads / s->model->h.kv_heads;
    return dry_attend_byte_s(&m->all, s->given.kv_k, group) + dry_attend_byte_s(&m->all, s->given.kv_v, group);
}

/* What a token at the end of the context would take on one machine that had the memory. */
static double alone_s(const search *s, uint32_t machine) {
    const hparams *h = &s->model->h;
    const rs_machine *m = &s->machines->machine[machine];
    double plane = (double)kv_plane_bytes(s->given.kv_k, h->head_dim) / PAGE_TOKENS;
    double kv = (double)s->given.context * h->layers * h->kv_heads * plane;
    return all_weights_s(s->model, m) + kv * kv_byte_s(s, m);
}

static void order_machines(search *s) {
    for (uint32_t i = 0; i < s->machines->count; i++) {
        uint32_t place = i, first = s->machines->led ? i : 0; /* the ranks of machines that are there are given */
        double seconds = alone_s(s, i);
        for (; place > first && seconds < alone_s(s, s->order[place - 1]); place--)
            s->order[place] = s->order[place - 1];
        s->order[place] = i;
    }
    for (uint32_t i = 0; i < s->machines->count; i++) {
        const rs_machine *m = &s->machines->machine[s->order[i]];
        s->weights_s[i] = all_weights_s(s->model, m);
        s->kv_byte_s[i] = kv_byte_s(s, m);
        s->uneven = s->uneven || s->weights_s[i] != s->weights_s[0] || s->kv_byte_s[i] != s->kv_byte_s[0];
    }
}

/* ---- Memory ---- */

static uint64_t room_of(const search *s, const rs_price *c, uint32_t rank) {
    return s->machines->machine[c->machine[rank]].memory_bytes;
}

/* What each machine of several holds for the program itself. */
static uint64_t program_of(const search *s, uint32_t ranks) {
    return s->program + PROGRAM_SLACK + ucx_resident(ranks);
}

/* Fills in what each rank holds and whether it fits. */
static void take_stock(const search *s, const rs_plan *p, rs_price *c) {
    uint32_t ranks = p->sharding.ranks;
    double worst = 1;
    c->fits = true;
    for (uint32_t r = 0; r < ranks; r++) {
        const rs_plan_rank *have = &p->ranks[r];
        uint64_t buffers = have->activations + have->wire;
        c->kv[r] = have->kv;
        c->weights[r] =
            s->machines->local ? have->weights : have->slices + p->info.weights; /* and the rest of the file */
        c->held[r] = buffers + have->kv;
        if (s->machines->local) continue;
        c->held[r] += c->weights[r] + p->info.tables + program_of(s, ranks);
        double load = (double)c->held[r] / (double)room_of(s, c, r);
        if (load > worst) {
            worst = load;
            c->fits = false;
            c->lacks = r;
        }
    }
    if (s->machines->local) {
        c->fits = size_add(size_add(p->info.weights, s->program), size_add(p->info.ranks, p->info.tables)) <= s->limit;
    }
}

static void make_sum_one(double *shares, uint32_t ranks) {
    double sum = 0;
    for (uint32_t r = 0; r < ranks; r++) sum += shares[r];
    for (uint32_t r = 0; r < ranks; r++) shares[r] /= sum;
}

/* What is left of rank r's share of pages or of weights so that it has room; 1 where that cannot or need not shrink. */
static double kept(const search *s, const rs_price *c, uint32_t r, bool of_pages, double least) {
    const rs_options *o = &c->options;
    bool dealt = o->split != RS_SPLIT_TP && o->split != RS_SPLIT_PP; /* else KV lies with its weights */
    double share = of_pages ? o->shares[r] : o->weight_shares[r];
    double bytes = (double)(of_pages ? c->kv[r] : dealt ? c->weights[r] : c->weights[r] + c->kv[r]);
    double over = (double)c->held[r] - (double)room_of(s, c, r);
    if (over <= 0 || (of_pages && !dealt) || share <= least * 1.001 || bytes <= 0) return 1;
    return fmax(fmax(0, 1 - over / bytes) * shrink, least / share);
}

/* Multiplies shares by what is kept and gives the rest to ranks that may have it, in proportion. False when none may.
 */
static bool hand_over(double *shares, const double *keep, const bool *closed, uint32_t ranks) {
    double moved = 0, takers = 0;
    for (uint32_t r = 0; r < ranks; r++) {
        moved += shares[r] * (1 - keep[r]);
        if (!closed[r]) takers += shares[r];
    }
    if (takers <= 0) return moved == 0;
    for (uint32_t r = 0; r < ranks; r++) shares[r] *= closed[r] ? keep[r] : 1 + moved / takers;
    return true;
}

/* Moves away what ranks without room have too much of, pages or weights first; who is ever full gets nothing of it.
 * False when nothing can be moved. */
static bool relieve(const search *s, const sharding *cut, rs_price *c, relief first, bool *full) {
    rs_options *o = &c->options;
    double pages[RS_RANKS_MAX], sliced[RS_RANKS_MAX], least = o->split == RS_SPLIT_R4 ? 0 : share_least;
    bool closed[RS_RANKS_MAX] = {0}, any = false;
    make_sum_one(o->shares, o->ranks);
    make_sum_one(o->weight_shares, o->ranks);
    for (uint32_t r = 0; r < o->ranks; r++) {
        full[r] = full[r] || c->held[r] > room_of(s, c, r);
        pages[r] = kept(s, c, r, true, share_least);
        sliced[r] = kept(s, c, r, false, least);
        if (pages[r] < 1 && sliced[r] < 1) *(first == PAGES_FIRST ? &sliced[r] : &pages[r]) = 1;
        any = any || pages[r] < 1 || sliced[r] < 1;
    }
    for (uint32_t q = 0; q < o->ranks; q++) {
        for (uint32_t r = 0; r < o->ranks; r++) { /* the ranks of a party hold the same pages */
            if (sharding_party(cut, q) != sharding_party(cut, r)) continue;
            closed[r] = closed[r] || full[q];
            pages[r] = fmin(pages[r], pages[q]);
        }
    }
    return any && hand_over(o->shares, pages, closed, o->ranks) && hand_over(o->weight_shares, sliced, full, o->ranks);
}

/* ---- Candidates ---- */

/* Whether the search may set shares. 0 is a share that a rank can be given. */
static bool shares_are_free(const search *s) {
    if (s->machines->local) return false;
    for (int r = 0; r < RS_RANKS_MAX; r++) {
        if (s->given.shares[r] > 0 || s->given.weight_shares[r] > 0) return false;
    }
    return true;
}

/* A machine's threads all work for its rank, and each has buffers. */
static rs_status make_plan(const search *s, const rs_price *c, rs_plan **out) {
    plan_scope scope = {.packed = !s->machines->local, .elsewhere = true};
    rs_options elsewhere = c->options;
    uint32_t threads[RS_RANKS_MAX];
    elsewhere.memory_limit = (uint64_t)1 << 62; /* not this machine's business */
    for (uint32_t r = 0; r < c->options.ranks; r++) threads[r] = s->machines->machine[c->machine[r]].threads;
    if (!s->machines->local) scope.threads = threads;
    return plan_make(s->model, &elsewhere, scope, out);
}

/* A plan whose shares are moved until everything fits or nothing is left to move. Freed by the caller, also after a
 * failure. */
static rs_status fit(const search *s, rs_price *c, relief first, bool *moved, rs_plan **out) {
    bool may_move = shares_are_free(s);
    bool full[RS_RANKS_MAX] = {0};
    *moved = false;
    for (int i = 0;; i++) {
        RS_TRY(make_plan(s, c, out));
        take_stock(s, *out, c);
        if (c->fits || !may_move || i == FIT_ROUNDS || !relieve(s, &(*out)->sharding, c, first, full)) break;
        *moved = true;
        rs_plan_free(*out);
        *out = NULL;
    }
    c->options = (*out)->options;
    c->options.memory_limit = s->given.memory_limit;
    return RS_OK;
}

/* Time at each depth, and at the end of the context. */
static rs_status price_tokens(const search *s, const rs_plan *plan, rs_price *c) {
    price *p;
    virtual_clock clocks[RS_RANKS_MAX];
    RS_TRY(price_open(plan, s->machines, c->machine, &p));
    rs_status status = price_step(p, plan->options.context - 1, 1, &c->token_at_end, clocks);
    for (uint32_t r = 0; status == RS_OK && r < plan->sharding.ranks; r++) {
        const double *own = clocks[r].own;
        c->rank[r] = (rs_parts){own[COST_WEIGHTS], own[COST_KV], own[COST_NETWORK], own[COST_REST]};
        if (clocks[r].rounds < c->rounds || clocks[r].bytes < c->wire) continue;
        c->rounds = clocks[r].rounds;
        c->messages = clocks[r].messages;
        c->wire = clocks[r].bytes;
    }
    for (size_t i = 0; status == RS_OK && i < s->n_depths; i++) {
        c->depth[i] = s->depths[i];
        if (s->depths[i] < plan->options.context) status = price_step(p, s->depths[i], 1, &c->token[i], NULL);
    }
    price_close(p);
    return status;
}

static rs_status add(search *s, const rs_price *c) {
    if (s->count == s->capacity) return status_fail(RS_LIMIT, "more than %zu plans to list", s->capacity);
    s->list[s->count++] = *c;
    return RS_OK;
}

/* Prices a candidate and lists it. `again`: only where shares were moved another way than the first time, and fit. */
static rs_status try_candidate(search *s, rs_price *c, relief first, bool again, bool *moved) {
    rs_plan *plan = NULL;
    rs_status status = fit(s, c, first, moved, &plan);
    if (status == RS_OK && (!again || (*moved && c->fits))) {
        status = price_tokens(s, plan, c);
        if (status == RS_OK) status = add(s, c);
    }
    rs_plan_free(plan);
    return status;
}

/* In a pipeline one machine works after another: the fastest takes what it can hold. */
static void fill_fastest_first(const search *s, const rs_price *c, uint32_t ranks, double *shares) {
    double total = (double)s->given.context * s->model->h.layers * s->model->h.kv_heads / PAGE_TOKENS *
                   (double)(kv_plane_bytes(s->given.kv_k, s->model->h.head_dim) +
                            kv_plane_bytes(s->given.kv_v, s->model->h.head_dim));
    total += (double)gguf_file_bytes(s->model->file);
    double left = 1;
    for (uint32_t r = 0; r < ranks; r++) {
        double can = fmax(0, (double)room_of(s, c, r) - (double)program_of(s, ranks)) / total * 0.95;
        shares[r] = fmax(fmin(left, can), share_least);
        left -= fmin(left, can);
    }
}

static rs_status try_split(search *s, rs_split split, uint32_t ranks, uint32_t tpa) {
    for (int first = 0; first < RELIEFS; first++) {
        rs_price c = {.options = s->given};
        bool moved, by_speed = shares_are_free(s);
        c.options.split = split;
        c.options.tpa = tpa;
        c.options.ranks = ranks;
        for (uint32_t r = 0; r < ranks; r++) {
            c.machine[r] = s->machines->local ? 0 : s->order[r];
            if (!by_speed) continue;
            c.options.shares[r] = 1 / s->kv_byte_s[r];
            c.options.weight_shares[r] = 1 / s->weights_s[r];
        }
        bool fills = by_speed && split == RS_SPLIT_PP && first == WEIGHTS_FIRST && s->uneven;
        if (fills) fill_fastest_first(s, &c, ranks, c.options.weight_shares);
        RS_TRY(try_candidate(s, &c, (relief)first, first == WEIGHTS_FIRST && !fills, &moved));
        bool once = !moved && !(split == RS_SPLIT_PP && s->uneven);
        if (once || !by_speed || ranks == 1) break;
    }
    return RS_OK;
}

static bool counts(const search *s, uint32_t ranks) {
    if (s->given.ranks > 0) return ranks == s->given.ranks;
    bool round = (ranks & (ranks - 1)) == 0 || (ranks % 3 == 0 && (ranks / 3 & (ranks / 3 - 1)) == 0);
    return ranks <= COUNT_ALL || round || ranks == s->machines->count;
}

static rs_status try_all(search *s) {
    static const rs_split splits[] = {RS_SPLIT_R4, RS_SPLIT_R3, RS_SPLIT_R2, RS_SPLIT_R1, RS_SPLIT_TP, RS_SPLIT_PP};
    uint32_t most = s->machines->local ? s->given.ranks : s->machines->count;
    for (uint32_t ranks = 1; ranks <= most; ranks++) {
        if (!counts(s, ranks)) continue;
        for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) {
            if (ranks > 1 && s->given.split != RS_SPLIT_AUTO && s->given.split != splits[i]) continue;
            if (ranks == 1 && (i > 0 || (s->given.split != RS_SPLIT_AUTO && most > 1 && s->given.ranks != 1))) break;
            for (uint32_t tpa = 1; tpa == 1 || tpa < ranks; tpa++) {
                if (s->given.tpa > 0 && tpa != s->given.tpa) continue;
                if (sharding_cuts(&s->model->h, splits[i], ranks, tpa)) RS_TRY(try_split(s, splits[i], ranks, tpa));
            }
        }
    }
    return RS_OK;
}

/* ---- The choice ---- */

static int compare(const void *a, const void *b) {
    const rs_price *x = a, *y = b;
    if (x->fits != y->fits) return x->fits ? -1 : 1;
    double x_s = parts_sum(&x->token_at_end), y_s = parts_sum(&y->token_at_end);
    return (x_s > y_s) - (x_s < y_s);
}

/* Prices prompts with longer chunks while these pay, where the caller leaves the chunk open. */
static rs_status choose_chunk(const search *s, rs_price *best) {
    uint32_t most = s->given.chunk > 0 || s->machines->local ? best->options.chunk : CHUNK_MOST;
    double best_s = INFINITY;
    for (uint32_t chunk = best->options.chunk;; chunk *= 2) {
        rs_price c = *best;
        rs_plan *plan;
        price *p = NULL;
        rs_parts prompt;
        c.options.chunk = chunk;
        RS_TRY(make_plan(s, &c, &plan));
        take_stock(s, plan, &c);
        rs_status status = price_open(plan, s->machines, c.machine, &p);
        if (status == RS_OK) status = price_prompt(p, plan->options.context, &prompt);
        price_close(p);
        if (status == RS_OK && (best_s == INFINITY || (c.fits && parts_sum(&prompt) < best_s))) {
            c.options.chunk = plan->options.chunk;
            best_s = parts_sum(&prompt);
            *best = c;
            best->prefill = prompt;
        }
        rs_plan_free(plan);
        RS_TRY(status);
        if (chunk > most / 2 || chunk >= best->options.context) break;
    }
    return RS_OK;
}

/* Whether a context fits, its shares moved as they would be. */
static rs_status context_fits(const search *s, const rs_price *best, uint32_t pages, bool *fits) {
    rs_price c = *best;
    rs_plan *plan = NULL;
    bool moved;
    c.options.context = pages * PAGE_TOKENS;
    rs_status status = fit(s, &c, PAGES_FIRST, &moved, &plan);
    *fits = c.fits;
    rs_plan_free(plan);
    return status;
}

static rs_status find_context(const search *s, rs_price *best) {
    uint32_t fits = 0, too_many = CONTEXT_SOUGHT / PAGE_TOKENS + 1;
    bool fit_here = best->fits;
    if (fit_here) fits = best->options.context / PAGE_TOKENS;
    for (uint32_t pages = fits > 0 ? 2 * fits : 1; pages < too_many; pages *= 2) {
        RS_TRY(context_fits(s, best, pages, &fit_here));
        if (!fit_here) too_many = pages;
        if (fit_here) fits = pages;
    }
    while (too_many - fits > 1) {
        uint32_t middle = fits + (too_many - fits) / 2;
        RS_TRY(context_fits(s, best, middle, &fit_here));
        if (fit_here) fits = middle;
        if (!fit_here) too_many = middle;
    }
    best->context_max = fits * PAGE_TOKENS;
    return RS_OK;
}

/* The choice with K and V in the other formats. */
static rs_status try_formats(search *s) {
    for (int kv = 0; kv < RS_KV_FORMATS; kv++) {
        rs_price c = {.options = s->list[0].options};
        bool moved, quantised = kv != RS_KV_F16;
        if (c.options.kv_k == (rs_kv_format)kv && c.options.kv_v == (rs_kv_format)kv) continue;
        if (quantised && s->model->h.head_dim % 32 != 0) continue;
        c.options.kv_k = c.options.kv_v = (rs_kv_format)kv;
        memcpy(c.machine, s->list[0].machine, sizeof c.machine);
        RS_TRY(try_candidate(s, &c, PAGES_FIRST, false, &moved));
    }
    return RS_OK;
}

static rs_status check(const search *s, const rs_machines *machines) {
    if (machines->count < 1 || machines->count > RS_RANKS_MAX || (machines->local && machines->count != 1)) {
        return status_fail(RS_BAD_ARGUMENT, "a cluster of %u machines; 1 to %d are possible, and 1 that is local",
                           machines->count, RS_RANKS_MAX);
    }
    if (!machines->local && s->given.ranks > machines->count) {
        return status_fail(RS_BAD_ARGUMENT, "%u ranks asked for and the cluster has %u machines", s->given.ranks,
                           machines->count);
    }
    if (s->n_depths > RS_DEPTHS_MAX) {
        return status_fail(RS_BAD_ARGUMENT, "%zu depths asked for, at most %d are possible", s->n_depths,
                           RS_DEPTHS_MAX);
    }
    return RS_OK;
}

rs_status rs_plan_search(const rs_model *model, const rs_options *options, const rs_machines *machines,
                         const uint32_t *depths, size_t n_depths, rs_price *list, size_t capacity, size_t *count,
                         size_t *others) {
    if (model == NULL || options == NULL || machines == NULL || list == NULL || count == NULL || others == NULL ||
        (n_depths > 0 && depths == NULL)) {
        return status_fail(RS_BAD_ARGUMENT, "rs_plan_search needs a model, options, a cluster and places to write");
    }
    search s = {model, machines, *options, depths, n_depths, list, capacity};
    RS_TRY(check(&s, machines));
    if (s.given.context == 0) s.given.context = model->h.context_trained;
    if (machines->local && s.given.ranks == 0) s.given.ranks = 1;
    if (!machines->local && s.given.threads == 0) s.given.threads = 1; /* the machines' rates tell of theirs */
    s.program = budget_resident(gguf_data(model->file), gguf_file_bytes(model->file));
    s.limit = s.given.memory_limit > 0 ? s.given.memory_limit : budget_limit();
    order_machines(&s);
    RS_TRY(try_all(&s));
    if (s.count == 0)
        return status_fail(RS_UNSUPPORTED,
                           "no plan has the ranks, the split and the parts of KV heads (tpa) asked for");
    size_t first = machines->local ? 1 : 0; /* which is what an engine does */
    qsort(list + first, s.count - first, sizeof *list, compare);
    RS_TRY(choose_chunk(&s, &list[0]));
    if (!machines->local) RS_TRY(find_context(&s, &list[0]));
    *others = s.count;
    RS_TRY(try_formats(&s));
    *count = s.count;
    return RS_OK;
}
