/* rank.c: what a rank does at a command, on its own thread. */
#include "engine/remote.h"

static void touch_piece(void *job, size_t piece, size_t thread) {
    (void)thread;
    arena_touch(job, piece);
}

/* Maps memory and touches it by the rank's own threads, so that it is near them; over several nodes it spreads. */
static rs_status take_memory(rank *r, arena *a, size_t bytes) {
    RS_TRY(arena_reserve(a, bytes));
    pool_run(r->pool, touch_piece, a, arena_pieces(a));
    return RS_OK;
}

static rs_status furnish(rank *r) {
    const rs_plan *p = r->engine->plan;
    arena sizes = {0};
    rank_buffers buffers;
    rank_layout(&buffers, &sizes, p, r->index);
    RS_TRY(take_memory(r, &r->memory, sizes.used));
    rank_layout(&buffers, &r->memory, p, r->index);
    RS_TRY(cpu_open(p->kernels, &buffers.cpu, r->pool, &r->device));
    r->forward = (forward){.m = &p->view,
                           .rank = r->index,
                           .own = &p->sharding.of[r->index],
                           .d = r->device,
                           .c = r->c,
                           .kv = &r->cache,
                           .weights = buffers.weights,
                           .b = buffers.forward};
    if (!p->view.packed) return RS_OK;
    const model_view *m = &p->view;
    if (!r->engine->lacks_model[r->index]) {
        slices_pack(&r->forward.weights, m->h, m->w, r->forward.own, r->engine->model->file);
    }
    return r->engine->cluster != NULL ? remote_slices(r) : RS_OK;
}

static rs_status open_pages(rank *r) {
    const rs_plan *p = r->engine->plan;
    arena sizes = {0};
    rank_kv_layout(&r->cache, &sizes, p, r->index);
    RS_TRY(take_memory(r, &r->pages, sizes.used));
    rank_kv_layout(&r->cache, &r->pages, p, r->index);
    r->open = true;
    return RS_OK;
}

rs_status rank_obey(rank *r, const command *c) {
    switch (c->kind) {
    case COMMAND_FURNISH:
        return furnish(r);
    case COMMAND_OPEN:
        return open_pages(r);
    case COMMAND_CLOSE:
        arena_unmap(&r->pages);
        r->open = false;
        return RS_OK;
    case COMMAND_STEP:
        return forward_step(&r->forward, &c->step);
    case COMMAND_FILL:
        return kv_fill(&r->cache, r->device, c->length, r->forward.own->kv_held.begin, c->seed);
    case COMMAND_FOLLOW:
        return remote_follow(r);
    case COMMAND_QUIT:
        break;
    }
    return RS_OK;
}
