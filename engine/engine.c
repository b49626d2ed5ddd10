/* engine.c: starts the ranks and hands them commands. */
#include "engine/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/cluster.h"
#include "engine/remote.h"

static const double POLL_S = 0.2;

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
        r->status = e->cluster == NULL ? rank_obey(r, &c) : remote_obey(r, &c);
        if (r->status != RS_OK) {
            snprintf(r->error, sizeof r->error, "%s", rs_last_error());
            r->c->abort(r->c);
        }
        pthread_mutex_lock(&e->lock);
        if (--e->pending == 0) pthread_cond_signal(&e->finished);
        pthread_mutex_unlock(&e->lock);
        if (c.kind == COMMAND_QUIT) return NULL;
    }
}

/* A member waits for its slices, and then in one command until the head leaves, or its user wants to. */
static bool waits_for_head(const rs_engine *e, const command *c) {
    return e->first > 0 && (c->kind == COMMAND_FOLLOW || c->kind == COMMAND_FURNISH);
}

static void poll_cluster(rs_engine *e) {
    struct timespec until = clock_after(POLL_S);
    if (pthread_cond_timedwait(&e->finished, &e->lock, &until) == 0) return;
    pthread_mutex_unlock(&e->lock);
    cluster_poll(e->cluster);
    pthread_mutex_lock(&e->lock);
}

rs_status engine_run(rs_engine *e, const command *c) {
    if (e->broken && c->kind != COMMAND_QUIT) {
        return status_fail(RS_PEER_LOST, "an earlier step failed; open the engine again");
    }
    pthread_mutex_lock(&e->lock);
    e->command = *c;
    e->pending = e->started;
    e->generation++;
    pthread_cond_broadcast(&e->posted);
    while (e->pending > 0) {
        if (waits_for_head(e, c)) {
            poll_cluster(e);
        } else {
            pthread_cond_wait(&e->finished, &e->lock);
        }
    }
    pthread_mutex_unlock(&e->lock);
    const rank *cause = NULL;
    for (uint32_t i = 0; i < e->started; i++) {
        const rank *r = &e->ranks[i];
        if (r->status == RS_OK) continue;
        e->broken = true;
        if (cause == NULL || cause->status == RS_PEER_LOST) cause = r;
    }
    return cause == NULL ? RS_OK : status_fail(cause->status, "%s", cause->error);
}

rs_status engine_start(rs_engine *e, size_t place, comm *c) {
    rank *r = &e->ranks[e->started];
    *r = (rank){.engine = e, .index = e->first + e->started, .place = place, .c = c};
    RS_TRY(pool_open(rank_threads(&e->plan->options, r->index), e->topology, place, &r->pool));
    if (pthread_create(&r->thread, NULL, rank_main, r) != 0) {
        pool_close(r->pool);
        return status_fail(RS_NO_MEMORY, "cannot start the thread of rank %u", r->index);
    }
    e->started++;
    return RS_OK;
}

rs_status engine_new(const rs_model *model, rs_engine **out) {
    rs_engine *e = calloc(1, sizeof *e);
    if (e == NULL) return status_fail(RS_NO_MEMORY, "no memory for an engine");
    e->model = model;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->posted, NULL);
    clock_condition_init(&e->finished);
    *out = e;
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

/* Ranks that are threads of this process. */
static rs_status open_local(rs_engine *e) {
    uint32_t ranks = e->plan->sharding.ranks, threads[RS_RANKS_MAX];
    for (uint32_t r = 0; r < ranks; r++) threads[r] = rank_threads(&e->plan->options, r);
    topology_deal(e->topology, ranks, threads);
    RS_TRY(local_group_open(ranks, RANK_DEADLINE_S, topology_roomy(e->topology), &e->group));
    size_t place = 0;
    for (uint32_t r = 0; r < ranks; r++) {
        RS_TRY(engine_start(e, place, local_group_comm(e->group, r)));
        place += threads[r];
    }
    return RS_OK;
}

static rs_status open_ranks(rs_engine *e, const rs_options *options, bool packed) {
    RS_TRY(topology_open(NULL, &e->topology)); /* before the plan, which counts what the process has by then */
    plan_scope scope = {.packed = packed, .local = {0, options->cluster != NULL}};
    RS_TRY(plan_make(e->model, options, scope, &e->plan));
    if (e->plan->info.total > e->plan->info.limit) return refuse(&e->plan->info);
    RS_TRY(options->cluster == NULL ? open_local(e) : cluster_start(options->cluster, e));
    return engine_run(e, &(command){.kind = COMMAND_FURNISH});
}

rs_status engine_open(const rs_model *model, const rs_options *options, bool packed, rs_engine **out) {
    if (model == NULL || options == NULL || out == NULL)
        return status_fail(RS_BAD_ARGUMENT, "rs_engine_open needs a model");
    rs_engine *e = NULL;
    RS_TRY(engine_new(model, &e));
    rs_status status = open_ranks(e, options, packed);
    if (status != RS_OK) {
        char why[STATUS_TEXT_MAX];
        snprintf(why, sizeof why, "%s", rs_last_error());
        rs_engine_close(e);
        return status_fail(status, "%s", why);
    }
    *out = e;
    return RS_OK;
}

rs_status rs_engine_open(const rs_model *model, const rs_options *options, rs_engine **out) {
    return engine_open(model, options, options != NULL && options->cluster != NULL, out);
}

void rs_engine_close(rs_engine *e) {
    if (e == NULL) return;
    rs_session_close(e->session);
    if (e->started > 0) engine_run(e, &(command){.kind = COMMAND_QUIT});
    for (uint32_t i = 0; i < e->started; i++) {
        rank *r = &e->ranks[i];
        pthread_join(r->thread, NULL);
        if (r->device != NULL) r->device->ops->close(r->device);
        pool_close(r->pool);
        arena_unmap(&r->pages);
        arena_unmap(&r->memory);
    }
    if (e->cluster != NULL) cluster_end(e->cluster);
    ucx_close(e->ucx);
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
