/* plan.h: who holds what, and every byte of it, found by walking the real layout on arenas without memory. */
#ifndef RS_PLAN_PLAN_H
#define RS_PLAN_PLAN_H

#include "device/cpu.h"
#include "forward/forward.h"
#include "model/model.h"

/* One rank's weights and working memory, in one arena. */
typedef struct rank_buffers {
    slices weights;
    uint64_t weights_bytes;
    forward_buffers forward;
    cpu_buffers cpu;
} rank_buffers;

struct rs_plan {
    rs_options options; /* complete */
    range local;        /* the ranks of this process */
    uint32_t threads[RS_RANKS_MAX];
    const kernels *kernels;
    sharding sharding;
    arena memory; /* of the deal */
    deal deal;
    model_view view; /* points into this plan and the model */
    rs_plan_rank ranks[RS_RANKS_MAX];
    rs_plan_info info;
};

/* Bytes by which the program's own memory may differ from run to run: advice on what fits must hold. */
enum { PROGRAM_SLACK = 4 << 20 };

/* Whose plan it is. */
typedef struct plan_scope {
    bool packed;    /* ranks hold packed slices (model/slices.h), as ranks on several machines must; else all share the
                       mapped file */
    bool elsewhere; /* for machines that are not this: nothing is asked of it, so program and context_max stay 0 */
    range local;    /* the ranks of this process, whose bytes make the total; empty: all */
    const uint32_t *threads; /* [ranks] of each rank's device; NULL: as the options deal them */
} plan_scope;

/* rs_plan_make of any scope. */
rs_status plan_make(const rs_model *model, const rs_options *options, plan_scope scope, rs_plan **out);

/* Walks a rank's weights and working memory. */
void rank_layout(rank_buffers *b, arena *a, const rs_plan *p, uint32_t rank);

/* Walks a rank's KV pages for one session. */
void rank_kv_layout(kv_cache *c, arena *a, const rs_plan *p, uint32_t rank);

/* Replaces 0 by the cores this process may use. RS_BAD_ARGUMENT for more threads than are possible. */
rs_status plan_threads(uint32_t *threads);

/* Threads of a rank's device. */
uint32_t rank_threads(const rs_options *o, uint32_t rank);

#endif
