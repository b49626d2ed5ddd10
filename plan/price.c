/* price.c: the forward pass of all ranks, run dry. */
#include "plan/price.h"

#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "comm/dry_comm.h"
#include "device/dry.h"

/* Chunks of a prompt between which the others' cost is read off lines, while pages travel. Early ones, since portions
 * of pages are copied dry, too: three, and the others up to DEPTH_TOKENS. */
static const uint32_t chunk_depths[] = {0, 1, 4, 16, 24};
enum { CHUNK_DEPTHS = sizeof chunk_depths / sizeof *chunk_depths, DEPTHS_LEAST = 3, DEPTH_TOKENS = 16384 };

typedef struct dry_rank {
    price *price;
    uint32_t index;
    rs_rates rates;
    virtual_clock clock;
    arena working, pages;
    kv_cache cache;
    device *device;
    forward forward;
    rs_status status;
    char error[STATUS_TEXT_MAX];
} dry_rank;

struct price {
    const rs_plan *plan;
    rs_link *links;  /* [ranks, ranks] */
    int32_t *tokens; /* [chunk], all 0 */
    dry_group *group;
    step step;
    dry_rank ranks[];
};

double parts_sum(const rs_parts *parts) {
    return parts->weights + parts->kv + parts->network + parts->rest;
}

static rs_parts parts_of(const double costs[COSTS]) {
    return (rs_parts){costs[COST_WEIGHTS], costs[COST_KV], costs[COST_NETWORK], costs[COST_REST]};
}

/* ---- What a rank runs on ---- */

/* Products by matrices of the rank's own: each thread does what it does alone, as far as the memory has it. (All
 * threads on one matrix meet at its end, and read it in turns, which is slower than matrices apart: on two cores by a
 * third.) */
static void own_products(rs_rates *out, const rs_machine *m, uint32_t threads, uint32_t busy) {
    double turns = fmin(1, (double)m->threads / busy), read = m->all.read_bytes_per_s * threads / busy;
    out->rows_per_s = m->one.rows_per_s * threads * turns;
    for (int i = 0; i < RS_WEIGHT_FORMATS; i++) {
        out->weights_bytes_per_s[i] = fmin(m->one.weights_bytes_per_s[i] * threads * turns, read);
    }
}

/* The rates of `threads` threads of a machine of which `busy` work at once: a thread is no faster than alone, and all
 * of them are no faster than the machine. */
static rs_rates rates_share(const rs_machine *m, uint32_t threads, uint32_t busy) {
    rs_rates out = threads > 1 || m->threads <= 1 ? m->all : m->one;
    const double *all = (const double *)&m->all, *one = (const double *)&m->one;
    double *rate = (double *)&out;
    _Static_assert(sizeof(rs_rates) % sizeof(double) == 0, "rates are doubles and nothing else");
    for (size_t i = 0; i < sizeof(rs_rates) / sizeof(double); i++) {
        size_t offset = i * sizeof(double);
        if (offset == offsetof(rs_rates, small_s) || offset == offsetof(rs_rates, launch_s)) continue;
        rate[i] = all[i] * threads / busy;
        if (one[i] > 0) rate[i] = fmin(rate[i], one[i] * threads);
    }
    if (threads < m->threads && m->one.rows_per_s > 0 && m->all.read_bytes_per_s > 0) {
        own_products(&out, m, threads, busy);
    }
    return out;
}

/* Ranks of one process share its machine's threads; in a pipeline only one of them works at a time. More threads than
 * those take turns: the third of three on two cores begins an operation when the others are done with theirs. (That the
 * long operations of a prompt share time fairly was tried: it holds for large models, and is a third off for small.) */
static rs_rates rates_here(const rs_plan *p, const rs_machine *m, uint32_t rank) {
    uint32_t threads = rank_threads(&p->options, rank), busy = 0;
    for (uint32_t r = 0; r < p->sharding.ranks; r++) busy += rank_threads(&p->options, r);
    if (p->sharding.split == RS_SPLIT_PP) busy = threads;
    if (busy > m->threads) busy = (busy + m->threads - 1) / m->threads * m->threads;
    return rates_share(m, threads, busy);
}

static rs_link link_between(const price *p, const rs_machines *c, const uint32_t *machine, uint32_t from, uint32_t to) {
    if (!c->local) return c->link[machine[from]][machine[to]];
    uint32_t threads = 0;
    for (uint32_t r = 0; r < p->plan->sharding.ranks; r++) threads += rank_threads(&p->plan->options, r);
    return threads > c->machine[0].threads ? c->machine[0].crowded : c->machine[0].local;
}

static rs_status open_rank(price *p, const rs_machines *c, const uint32_t *machine, uint32_t index) {
    dry_rank *r = &p->ranks[index];
    const rs_plan *plan = p->plan;
    r->price = p;
    r->index = index;
    r->rates = c->local ? rates_here(plan, &c->machine[0], index) : c->machine[machine[index]].all;
    arena sizes = {0}, kv_sizes = {0};
    rank_buffers buffers;
    rank_layout(&buffers, &sizes, plan, index);
    RS_TRY(arena_reserve(&r->working, sizes.used));
    rank_layout(&buffers, &r->working, plan, index);
    rank_kv_layout(&r->cache, &kv_sizes, plan, index);
    RS_TRY(arena_reserve(&r->pages, kv_sizes.used));
    rank_kv_layout(&r->cache, &r->pages, plan, index);
    RS_TRY(dry_open(&r->rates, &r->clock, &r->device));
    r->forward = (forward){.m = &plan->view,
                           .rank = index,
                           .own = &plan->sharding.of[index],
                           .d = r->device,
                           .c = dry_group_comm(p->group, index, &r->clock),
                           .kv = &r->cache,
                           .weights = buffers.weights,
                           .b = buffers.forward};
    return RS_OK;
}

static rs_status open_all(price *p, const rs_machines *c, const uint32_t *machine) {
    uint32_t ranks = p->plan->sharding.ranks;
    p->links = calloc((size_t)ranks * ranks, sizeof *p->links);
    p->tokens = calloc(p->plan->view.chunk, sizeof *p->tokens);
    if (p->links == NULL || p->tokens == NULL) return status_fail(RS_NO_MEMORY, "no memory to price %u ranks", ranks);
    for (uint32_t from = 0; from < ranks; from++) {
        for (uint32_t to = 0; to < ranks; to++) {
            if (from != to) p->links[from * ranks + to] = link_between(p, c, machine, from, to);
        }
    }
    RS_TRY(dry_group_open(ranks, p->links, &p->group));
    for (uint32_t r = 0; r < ranks; r++) RS_TRY(open_rank(p, c, machine, r));
    return RS_OK;
}

rs_status price_open(const rs_plan *plan, const rs_machines *cluster, const uint32_t *machine, price **out) {
    price *p = calloc(1, sizeof *p + plan->sharding.ranks * sizeof(dry_rank));
    if (p == NULL) return status_fail(RS_NO_MEMORY, "no memory to price a plan");
    p->plan = plan;
    rs_status status = open_all(p, cluster, machine);
    if (status != RS_OK) {
        price_close(p);
        return status;
    }
    *out = p;
    return RS_OK;
}

void price_close(price *p) {
    if (p == NULL) return;
    for (uint32_t r = 0; r < p->plan->sharding.ranks; r++) {
        if (p->ranks[r].device != NULL) p->ranks[r].device->ops->close(p->ranks[r].device);
        arena_unmap(&p->ranks[r].working);
        arena_unmap(&p->ranks[r].pages);
    }
    dry_group_close(p->group);
    free(p->links);
    free(p->tokens);
    free(p);
}

/* ---- Steps ---- */

static void *rank_main(void *argument) {
    dry_rank *r = argument;
    r->clock = (virtual_clock){0};
    dry_group_rest(r->price->group, r->index);
    r->status = forward_step(&r->forward, &r->price->step);
    if (r->status != RS_OK) {
        snprintf(r->error, sizeof r->error, "%s", rs_last_error());
        r->forward.c->abort(r->forward.c);
    }
    return NULL;
}

rs_status price_step(price *p, uint32_t first, uint32_t count, rs_parts *longest, virtual_clock *clocks) {
    uint32_t ranks = p->plan->sharding.ranks, started = 1;
    pthread_t threads[RS_RANKS_MAX];
    p->step = (step){p->tokens, first, count, true};
    for (; started < ranks; started++) {
        if (pthread_create(&threads[started], NULL, rank_main, &p->ranks[started]) != 0) break;
    }
    if (started < ranks) p->ranks[0].forward.c->abort(p->ranks[0].forward.c);
    rank_main(&p->ranks[0]);
    for (uint32_t r = 1; r < started; r++) pthread_join(threads[r], NULL);
    if (started < ranks) return status_fail(RS_NO_MEMORY, "cannot start a thread for each of %u ranks", ranks);
    const dry_rank *last = &p->ranks[0];
    for (uint32_t r = 0; r < ranks; r++) {
        if (p->ranks[r].status != RS_OK) return status_fail(p->ranks[r].status, "%s", p->ranks[r].error);
        if (virtual_now(&p->ranks[r].clock) > virtual_now(&last->clock)) last = &p->ranks[r];
        if (clocks != NULL) clocks[r] = p->ranks[r].clock;
    }
    *longest = parts_of(last->clock.path);
    return RS_OK;
}

static rs_parts mix(const rs_parts *a, double a_times, const rs_parts *b, double b_times) {
    return (rs_parts){a->weights * a_times + b->weights * b_times, a->kv * a_times + b->kv * b_times,
                      a->network * a_times + b->network * b_times, a->rest * a_times + b->rest * b_times};
}

/* Prices of chunks, by their number in the prompt, ascending; the others' lie on the lines between them. */
typedef struct samples {
    uint32_t count, index[CHUNK_DEPTHS];
    rs_parts cost[CHUNK_DEPTHS];
} samples;

static rs_status take_sample(price *p, samples *s, uint32_t index) {
    uint32_t chunk = p->plan->view.chunk;
    s->index[s->count] = index;
    return price_step(p, index * chunk, chunk, &s->cost[s->count++], NULL);
}

static rs_parts read_off(const samples *s, uint32_t index) {
    uint32_t line = 0;
    if (s->count == 1) return s->cost[0];
    while (line + 2 < s->count && index > s->index[line + 1]) line++;
    double way = ((double)index - s->index[line]) / (s->index[line + 1] - s->index[line]);
    return mix(&s->cost[line], 1 - way, &s->cost[line + 1], way);
}

/* The first of `chunks` chunks whose queries travel to the pages in layers that see all of them, `chunks` where none
 * does: there the price of a chunk leaps. The deeper a chunk, the more pages would travel. */
static uint32_t first_of_queries(const price *p, uint32_t chunks) {
    const model_view *m = &p->plan->view;
    uint32_t layer = 0, begin = 0, end = chunks;
    while (layer < m->h->layers && hparams_slides(m->h, layer)) layer++;
    if (layer == m->h->layers || !forward_spreads(m, m->chunk)) return chunks;
    while (begin < end) {
        uint32_t middle = begin + (end - begin) / 2;
        if (travel_as_queries(m, &(step){.first = middle * m->chunk, .count = m->chunk}, layer)) {
            end = middle;
        } else {
            begin = middle + 1;
        }
    }
    return begin;
}

rs_status price_prompt(price *p, uint32_t tokens, rs_parts *out) {
    uint32_t chunk = p->plan->view.chunk, chunks = tokens / chunk, leap = first_of_queries(p, chunks);
    samples shallow = {0}, deep = {0};
    rs_parts sum = {0};
    for (uint32_t i = 0; i < CHUNK_DEPTHS && chunk_depths[i] < leap; i++) {
        if (i >= DEPTHS_LEAST && chunk_depths[i] * chunk > DEPTH_TOKENS) break;
        RS_TRY(take_sample(p, &shallow, chunk_depths[i]));
    }
    if (leap < chunks) RS_TRY(take_sample(p, &deep, leap));
    if (leap + 1 < chunks) RS_TRY(take_sample(p, &deep, chunks - 1));
    for (uint32_t i = 0; i < chunks; i++) {
        rs_parts one = read_off(i < leap ? &shallow : &deep, i);
        sum = mix(&sum, 1, &one, 1);
    }
    if (tokens % chunk > 0) {
        rs_parts rest;
        uint32_t deepest = shallow.count > 0 ? shallow.index[shallow.count - 1] : 0;
        uint32_t first = leap < chunks || deepest == 0 ? chunks : deepest;
        RS_TRY(price_step(p, first * chunk, tokens % chunk, &rest, NULL));
        sum = mix(&sum, 1, &rest, 1);
    }
    *out = sum;
    return RS_OK;
}
