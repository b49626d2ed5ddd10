/* plan.c: options and a model to shards, deals and bytes. */
#include "plan/plan.h"

#include <assert.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm/ucx.h"
#include "plan/budget.h"

enum {
    CHUNK_DEFAULT = 512,
    CHUNK_PER_RANK = 2 * PAGE_TOKENS, /* at least, so that every rank has rows */
    CHUNK_MAX = 1 << 16,
    CONTEXT_LIMIT = 1 << 26, /* tokens; positions are 32-bit, and nobody has the memory for more */
    THREADS_MAX = 1024,
};

void rs_options_init(rs_options *options) {
    *options = (rs_options){.ranks = 1};
}

uint32_t rank_threads(const rs_options *o, uint32_t rank) {
    if (o->cluster != NULL) return o->threads;
    uint32_t threads = o->threads / o->ranks + (rank < o->threads % o->ranks);
    return threads > 0 ? threads : 1;
}

void rank_layout(rank_buffers *b, arena *a, const rs_plan *p, uint32_t rank) {
    const model_view *m = &p->view;
    device_limits limits = forward_limits(m, rank);
    size_t before = a->used;
    slices_layout(&b->weights, a, m->h, m->w, &m->s->of[rank], m->packed);
    b->weights_bytes = a->used - before;
    forward_layout(&b->forward, a, m, rank);
    cpu_layout(&b->cpu, a, p->kernels, &limits, p->threads[rank]);
}

void rank_kv_layout(kv_cache *c, arena *a, const rs_plan *p, uint32_t rank) {
    uint32_t party = sharding_party(&p->sharding, rank);
    kv_layout(c, a, p->view.h, &p->deal, party, &p->sharding.of[rank], p->view.kv, p->view.chunk);
}

/* ---- Options ---- */

static uint32_t cores(void) {
    cpu_set_t set;
    long n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)n : 1;
}

rs_status plan_threads(uint32_t *threads) {
    if (*threads == 0) *threads = cores();
    if (*threads <= THREADS_MAX) return RS_OK;
    return status_fail(RS_BAD_ARGUMENT, "%u threads asked for, at most %d are possible", *threads, THREADS_MAX);
}

static rs_status check_kv(rs_kv_format kv, const char *which, uint32_t head_dim) {
    if ((unsigned)kv >= RS_KV_FORMATS) return status_fail(RS_BAD_ARGUMENT, "%s is no KV format", which);
    if (kv != RS_KV_F16 && head_dim % 32 != 0) {
        return status_fail(RS_UNSUPPORTED,
                           "a quantised KV cache needs heads of a multiple of 32 values, the model has %u; "
                           "use f16",
                           head_dim);
    }
    return RS_OK;
}

static rs_status complete_options(rs_plan *p, const rs_model *model, const rs_options *given) {
    rs_options *o = &p->options;
    *o = *given;
    if (o->ranks < 1 || o->ranks > RS_RANKS_MAX) {
        return status_fail(RS_BAD_ARGUMENT, "%u ranks asked for, 1 to %d are possible", o->ranks, RS_RANKS_MAX);
    }
    if ((unsigned)o->split >= RS_SPLITS) return status_fail(RS_BAD_ARGUMENT, "unknown split %d", (int)o->split);
    RS_TRY(check_kv(o->kv_k, "kv_k", model->h.head_dim));
    RS_TRY(check_kv(o->kv_v, "kv_v", model->h.head_dim));
    if (o->context == 0) o->context = model->h.context_trained;
    if (o->context > CONTEXT_LIMIT) {
        return status_fail(RS_BAD_ARGUMENT, "a context of %u tokens asked for, at most %d are possible", o->context,
                           CONTEXT_LIMIT);
    }
    if (o->chunk == 0) o->chunk = o->ranks > 4 ? o->ranks * CHUNK_PER_RANK : CHUNK_DEFAULT;
    if (o->chunk > CHUNK_MAX) {
        return status_fail(RS_BAD_ARGUMENT, "a chunk of %u tokens asked for, at most %d are possible", o->chunk,
                           CHUNK_MAX);
    }
    RS_TRY(plan_threads(&o->threads));
    if (o->memory_limit == 0) o->memory_limit = budget_limit();
    RS_TRY(kernels_find(o->kernels, &p->kernels));
    o->kernels = p->kernels->name;
    return RS_OK;
}

/* ---- Bytes ---- */

/* With tensor parallelism a rank may have no KV head, in a pipeline no layer. */
static bool holds_kv(const rs_plan *p, uint32_t rank) {
    const shard *s = &p->sharding.of[rank];
    return range_count(s->kv_held) > 0 && range_count(s->layers) > 0;
}

/* Fills in p->deal (on p->memory), p->ranks, and the bytes of ranks and tables for one session of `context` tokens
 * (SIZE_MAX when they overflow). */
static rs_status measure(rs_plan *p, uint32_t context) {
    uint32_t parties = sharding_parties(&p->sharding);
    double shares[RS_RANKS_MAX];
    arena sizes = {0};
    deal_layout(&p->deal, &sizes, parties, pages_of(context));
    arena_unmap(&p->memory);
    RS_TRY(arena_map(&p->memory, sizes.used));
    deal_layout(&p->deal, &p->memory, parties, pages_of(context));
    sharding_party_shares(&p->sharding, shares);
    deal_fill(&p->deal, shares);
    p->view.chunk = p->options.chunk < context ? p->options.chunk : context;
    size_t sum = 0;
    for (uint32_t r = 0; r < p->sharding.ranks; r++) {
        arena working = {0}, kv = {0};
        rank_buffers buffers;
        kv_cache cache;
        rank_layout(&buffers, &working, p, r);
        rank_kv_layout(&cache, &kv, p, r);
        p->ranks[r].wire = buffers.forward.wire_bytes;
        p->ranks[r].slices = p->view.packed ? buffers.weights_bytes : 0;
        p->ranks[r].activations = working.used - p->ranks[r].wire - p->ranks[r].slices;
        p->ranks[r].kv = kv.used;
        p->ranks[r].pages = holds_kv(p, r) ? cache.slots_full : 0;
        bool here = r >= p->local.begin && r < p->local.end;
        if (here) sum = size_add(sum, size_add(working.used, kv.used));
    }
    p->info.ranks = sum;
    p->info.tables = size_add(sizes.used, size_mul(context, sizeof(int32_t)));
    return RS_OK;
}

/* Whether the ranks' and tables' bytes of a context fit `allowed`. */
static rs_status context_fits(rs_plan *p, uint32_t pages, uint64_t allowed, bool *fits) {
    RS_TRY(measure(p, pages * PAGE_TOKENS));
    *fits = size_add(p->info.ranks, p->info.tables) <= allowed;
    return RS_OK;
}

/* The largest context, a whole number of pages, that fits. The bytes grow with the context: doubling finds a context
 * that does not fit, so that time goes with the answer and not with CONTEXT_LIMIT, then halving the largest that does.
 */
static rs_status largest_context(rs_plan *p, uint64_t allowed, uint32_t *out) {
    const uint32_t most = CONTEXT_LIMIT / PAGE_TOKENS;
    uint32_t fits = 0, too_many = 1;
    bool fit = true;
    while (too_many <= most) {
        RS_TRY(context_fits(p, too_many, allowed, &fit));
        if (!fit) break;
        fits = too_many;
        too_many *= 2;
    }
    if (too_many > most) too_many = most + 1;
    while (too_many - fits > 1) {
        uint32_t middle = fits + (too_many - fits) / 2;
        RS_TRY(context_fits(p, middle, allowed, &fit));
        if (fit) {
            fits = middle;
        } else {
            too_many = middle;
        }
    }
    *out = fits * PAGE_TOKENS;
    return RS_OK;
}

static void describe_shards(rs_plan *p, const rs_model *model) {
    for (uint32_t r = 0; r < p->sharding.ranks; r++) {
        const shard *s = &p->sharding.of[r];
        rs_plan_rank *out = &p->ranks[r];
        out->weights = sharding_weight_bytes(&p->sharding, &model->h, &model->w, r);
        out->layer_begin = s->layers.begin;
        out->layer_end = s->layers.end;
        out->head_begin = s->heads.begin;
        out->head_end = s->heads.end;
        out->ffn_begin = s->ffn.begin;
        out->ffn_end = s->ffn.end;
        out->vocab_begin = s->vocab.begin;
        out->vocab_end = s->vocab.end;
    }
}

static rs_status make(rs_plan *p, const rs_model *model, const rs_options *options, plan_scope scope) {
    RS_TRY(complete_options(p, model, options));
    rs_options *o = &p->options;
    p->local = range_count(scope.local) > 0 ? scope.local : (range){0, o->ranks};
    RS_TRY(sharding_make(&model->h, &model->w, o->split, o->ranks, o->tpa, o->shares, o->weight_shares, &p->sharding));
    for (uint32_t r = 0; r < o->ranks; r++) {
        p->threads[r] = scope.threads != NULL ? scope.threads[r] : rank_threads(o, r);
    }
    o->split = p->sharding.split;
    o->tpa = o->tpa > 1 ? o->tpa : 1;
    memcpy(o->shares, p->sharding.shares, sizeof o->shares);
    memcpy(o->weight_shares, p->sharding.weight_shares, sizeof o->weight_shares);
    p->view = (model_view){.h = &model->h,
                           .w = &model->w,
                           .s = &p->sharding,
                           .deal = &p->deal,
                           .kv = {o->kv_k, o->kv_v},
                           .chunk = o->chunk,
                           .packed = scope.packed};
    p->view.travel_rows = travel_rows_best(&p->view);
    rs_plan_info *info = &p->info;
    *info = (rs_plan_info){.page_tokens = PAGE_TOKENS, .limit = o->memory_limit};
    info->weights = scope.packed ? slices_rest_bytes(&model->h, &model->w, model->file) : gguf_file_bytes(model->file);
    if (!scope.elsewhere) info->program = budget_resident(gguf_data(model->file), gguf_file_bytes(model->file));
    if (!scope.elsewhere && range_count(p->local) < o->ranks) info->program += ucx_resident(o->ranks);
    uint64_t fixed = info->weights + info->program;
    uint64_t taken = fixed + PROGRAM_SLACK;
    if (!scope.elsewhere) RS_TRY(largest_context(p, info->limit > taken ? info->limit - taken : 0, &info->context_max));
    RS_TRY(measure(p, o->context));
    info->total = size_add(fixed, size_add(info->ranks, info->tables));
    o->chunk = p->view.chunk;
    info->options = *o;
    describe_shards(p, model);
    return RS_OK;
}

rs_status plan_make(const rs_model *model, const rs_options *options, plan_scope scope, rs_plan **out) {
    if (model == NULL || options == NULL || out == NULL)
        return status_fail(RS_BAD_ARGUMENT, "rs_plan_make needs a model");
    rs_plan *p = calloc(1, sizeof *p);
    if (p == NULL) return status_fail(RS_NO_MEMORY, "no memory for a plan");
    rs_status status = make(p, model, options, scope);
    if (status != RS_OK) {
        rs_plan_free(p);
        return status;
    }
    *out = p;
    return RS_OK;
}

rs_status rs_plan_make(const rs_model *model, const rs_options *options, rs_plan **out) {
    /* Of a cluster this is the head. */
    bool cluster = options != NULL && options->cluster != NULL;
    return plan_make(model, options, (plan_scope){.packed = cluster, .local = {0, cluster}}, out);
}

void rs_plan_free(rs_plan *p) {
    if (p == NULL) return;
    arena_unmap(&p->memory);
    free(p);
}

void rs_plan_describe(const rs_plan *p, rs_plan_info *out) {
    *out = p->info;
}

void rs_plan_describe_rank(const rs_plan *p, uint32_t rank, rs_plan_rank *out) {
    assert(rank < p->sharding.ranks);
    *out = p->ranks[rank];
}

size_t rs_plan_tokens(const rs_plan *p, uint32_t rank, size_t length) {
    assert(rank < p->sharding.ranks);
    uint32_t tokens = length < p->options.context ? (uint32_t)length : p->options.context;
    if (!holds_kv(p, rank)) return 0;
    if (!p->sharding.pages_dealt) return tokens;
    uint32_t full = tokens / PAGE_TOKENS, rest = tokens % PAGE_TOKENS, party = sharding_party(&p->sharding, rank);
    bool holds_rest = rest > 0 && p->deal.owner[full] == party;
    return (size_t)deal_count(&p->deal, party, full) * PAGE_TOKENS + (holds_rest ? rest : 0);
}
