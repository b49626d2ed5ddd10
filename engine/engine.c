/* engine.c: starts the ranks and hands them commands. */
#include "engine/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Threads of one process cannot be lost without telling; this only bounds the wait if one hangs by a defect. The
 * longest honest wait is that of a pipeline's last stage for a chunk at great depth: minutes on slow cores. */
static const double RANK_DEADLINE_S = 3600.0;

static void touch_piece(void *job, size_t piece, size_t thread) {
    (void)thread;
    arena_touch(job, piece);
}

static rs_status obey(rank *r, const command *c) {
    switch (c->kind) {
    case COMMAND_TOUCH: {
        /* By the rank's own threads, so that its memory is near them; over several nodes it spreads, page by page. */
        arena memory = c->memory[r->index];
        pool_run(r->pool, touch_piece, &memory, arena_pieces(&memory));
        break;
    }
    case COMMAND_PACK: {
        const model_view *m = r->forward.m;
        slices_pack(&r->forward.weights, m->h, m->w, r->forward.own, r->engine->model->file);
        break;
    }
    case COMMAND_STEP:
        return forward_step(&r->forward, &c->step);
    case COMMAND_FILL:
        return kv_fill(r->forward.kv, r->device, c->length, r->forward.own->kv_held.begin, c->seed);
    case COMMAND_QUIT:
        break;
    }
    return RS_OK;
}

static void *rank_main(void *argument) {
    rank *r = argument;
    rs_engine *e = r->engine;
    uint64_t seen = 0;
    topology_pin(e->topology, r->place);
    for (;;) {
        pthread_mutex_lock(&e->lock);
        while (e->generation == seen) pthread_cond_wait(&e->posted, &e->lock);
        seen = e->generation;
        command c = e->command;
        pthread_mutex_unlock(&e->lock);
        r->status = obey(r, &c);
        if (r->status != RS_OK) {
            snprintf(r->error, sizeof r->error, "%s", rs_last_error());
            r->forward.c->abort(r->forward.c);
        }
        pthread_mutex_lock(&e->lock);
        if (--e->pending == 0) pthread_cond_signal(&e->finished);
        pthread_mutex_unlock(&e->lock);
        if (c.kind == COMMAND_QUIT) return NULL;
    }
}

/* How many ranks were started. */
static uint32_t started(const rs_engine *e) {
    uint32_t n = 0;
    while (n < RS_RANKS_MAX && e->ranks[n].started) n++;
    return n;
}

rs_status engine_run(rs_engine *e, const command *c) {
    if (e->broken && c->kind != COMMAND_QUIT) {
        return status_fail(RS_PEER_LOST, "an earlier step failed; open the engine again");
    }
    uint32_t ranks = started(e);
    pthread_mutex_lock(&e->lock);
    e->command = *c;
    e->pending = ranks;
    e->generation++;
    pthread_cond_broadcast(&e->posted);
    while (e->pending > 0) pthread_cond_wait(&e->finished, &e->lock);
    pthread_mutex_unlock(&e->lock);
    const rank *cause = NULL;
    for (uint32_t i = 0; i < ranks; i++) {
        const rank *r = &e->ranks[i];
        if (r->status == RS_OK) continue;
        e->broken = true;
        if (cause == NULL || cause->status == RS_PEER_LOST) cause = r;
    }
    return cause == NULL ? RS_OK : status_fail(cause->status, "%s", cause->error);
}

/* Starts a rank's threads, and maps its memory for them to touch. */
static rs_status start_rank(rs_engine *e, uint32_t index, size_t place) {
    rank *r = &e->ranks[index];
    arena sizes = {0};
    rank_buffers buffers;
    r->engine = e;
    r->index = index;
    r->place = place;
    rank_layout(&buffers, &sizes, e->plan, index);
    RS_TRY(arena_reserve(&e->memory[index], sizes.used));
    RS_TRY(pool_open(buffers.cpu.threads, e->topology, place, &r->pool));
    if (pthread_create(&r->thread, NULL, rank_main, r) != 0) {
        return status_fail(RS_NO_MEMORY, "cannot start the thread of rank %u", index);
    }
    r->started = true;
    return RS_OK;
}

/* Puts a rank's buffers into its memory, once that has been touched. */
static rs_status furnish_rank(rank *r) {
    rs_engine *e = r->engine;
    rank_buffers buffers;
    rank_layout(&buffers, &e->memory[r->index], e->plan, r->index);
    RS_TRY(cpu_open(e->plan->kernels, &buffers.cpu, r->pool, &r->device));
    r->forward = (forward){.m = &e->plan->view,
                           .rank = r->index,
                           .own = &e->plan->sharding.of[r->index],
                           .d = r->device,
                           .c = local_group_comm(e->group, r->index),
                           .weights = buffers.weights,
                           .b = buffers.forward};
    return RS_OK;
}

static rs_status refuse(const rs_plan_info *info) {
    const double mib = 1024.0 * 1024.0;
    if (info->context_max == 0) {
        return status_fail(
            RS_LIMIT,
            "no context fits the %.1f MiB allowed beside the model file (%.1f MiB), the program and the buffers "
            "of %u ranks; allow more memory, or use fewer ranks or a smaller model",
            (double)info->limit / mib, (double)info->weights / mib, info->options.ranks);
    }
    return status_fail(RS_LIMIT,
                       "a context of %u tokens needs %.1f MiB and %.1f MiB are allowed; the largest context that "
                       "fits is %u tokens",
                       info->options.context, (double)info->total / mib, (double)info->limit / mib, info->context_max);
}

static rs_status open_ranks(rs_engine *e, const rs_options *options, bool packed) {
    RS_TRY(topology_open(NULL, &e->topology)); /* before the plan, which counts what the process has by then */
    RS_TRY(plan_make(e->model, options, packed, &e->plan));
    if (e->plan->info.total > e->plan->info.limit) return refuse(&e->plan->info);
    uint32_t ranks = e->plan->sharding.ranks, threads[RS_RANKS_MAX];
    for (uint32_t r = 0; r < ranks; r++) threads[r] = rank_threads(&e->plan->options, r);
    topology_deal(e->topology, ranks, threads);
    RS_TRY(local_group_open(ranks, RANK_DEADLINE_S, topology_roomy(e->topology), &e->group));
    size_t place = 0;
    for (uint32_t r = 0; r < ranks; r++) {
        RS_TRY(start_rank(e, r, place));
        place += threads[r];
    }
    RS_TRY(engine_run(e, &(command){.kind = COMMAND_TOUCH, .memory = e->memory}));
    for (uint32_t r = 0; r < ranks; r++) RS_TRY(furnish_rank(&e->ranks[r]));
    return packed ? engine_run(e, &(command){.kind = COMMAND_PACK}) : RS_OK;
}

rs_status engine_open(const rs_model *model, const rs_options *options, bool packed, rs_engine **out) {
    if (model == NULL || options == NULL || out == NULL)
        return status_fail(RS_BAD_ARGUMENT, "rs_engine_open needs a model");
    rs_engine *e = calloc(1, sizeof *e);
    if (e == NULL) return status_fail(RS_NO_MEMORY, "no memory for an engine");
    e->model = model;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->posted, NULL);
    pthread_cond_init(&e->finished, NULL);
    rs_status status = open_ranks(e, options, packed);
    if (status != RS_OK) {
        rs_engine_close(e);
        return status;
    }
    *out = e;
    return RS_OK;
}

rs_status rs_engine_open(const rs_model *model, const rs_options *options, rs_engine **out) {
    return engine_open(model, options, false, out);
}

void rs_engine_close(rs_engine *e) {
    if (e == NULL) return;
    rs_session_close(e->session);
    uint32_t ranks = started(e);
    if (ranks > 0) engine_run(e, &(command){.kind = COMMAND_QUIT});
    for (uint32_t i = 0; i < ranks; i++) pthread_join(e->ranks[i].thread, NULL);
    for (uint32_t i = 0; i < RS_RANKS_MAX; i++) {
        if (e->ranks[i].device != NULL) e->ranks[i].device->ops->close(e->ranks[i].device);
        pool_close(e->ranks[i].pool);
        arena_unmap(&e->memory[i]);
    }
    local_group_close(e->group);
    topology_close(e->topology);
    rs_plan_free(e->plan);
    pthread_cond_destroy(&e->finished);
    pthread_cond_destroy(&e->posted);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

const rs_plan *rs_engine_plan(const rs_engine *e) {
    return e->plan;
}
