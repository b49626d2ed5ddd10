/* engine.h: the ranks of one process, in step: each is a thread with a device, an end of the communicator and its own
 * memory; the caller's thread hands all of them the same command and waits until all have done it. */
#ifndef RS_ENGINE_ENGINE_H
#define RS_ENGINE_ENGINE_H

#include <pthread.h>

#include "comm/local.h"
#include "plan/plan.h"

typedef enum command_kind { COMMAND_TOUCH, COMMAND_PACK, COMMAND_STEP, COMMAND_FILL, COMMAND_QUIT } command_kind;

typedef struct command {
    command_kind kind;
    const arena *memory; /* TOUCH: [ranks], reserved */
    step step;           /* STEP */
    uint32_t length;     /* FILL */
    uint64_t seed;       /* FILL */
} command;

typedef struct rank {
    struct rs_engine *engine;
    uint32_t index;
    pthread_t thread;
    bool started;
    size_t place; /* of its first thread in the topology's deal */
    pool *pool;   /* its threads: its own and the pool's */
    device *device;
    forward forward;
    rs_status status; /* of the latest command */
    char error[STATUS_TEXT_MAX];
} rank;

struct rs_engine {
    const rs_model *model;
    rs_plan *plan;
    topology *topology;
    local_group *group;
    struct rs_session *session; /* the one open, or NULL */
    bool broken;                /* a command failed: the ranks are no longer in step */

    pthread_mutex_t lock;
    pthread_cond_t posted, finished;
    command command;
    uint64_t generation; /* counts commands */
    uint32_t pending;    /* ranks that have not finished the present one */

    arena memory[RS_RANKS_MAX]; /* working buffers of each rank */
    rank ranks[RS_RANKS_MAX];
};

/* rs_engine_open for ranks that share the mapped file, or that each hold packed slices of the weights: what ranks of
 * one process have no need of, and ranks on several machines do. */
rs_status engine_open(const rs_model *model, const rs_options *options, bool packed, rs_engine **out);

/* Runs a command on all ranks and waits. On failure the first cause (not the other ranks' echo of it) is returned and
 * set as this thread's error, and the engine is broken. */
rs_status engine_run(rs_engine *e, const command *c);

#endif
