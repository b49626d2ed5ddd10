/* engine.h: the ranks of an engine that live in this process, in step: each is a thread with a device, an end of the
 * communicator and its own memory; the caller's thread hands all of them the same command and waits until all have done
 * it. In a cluster (engine/cluster.h) each process has one rank; that of the head passes commands on to the others. */
#ifndef RS_ENGINE_ENGINE_H
#define RS_ENGINE_ENGINE_H

#include <pthread.h>

#include "comm/local.h"
#include "comm/ucx.h"
#include "plan/plan.h"

/* Bounds what a rank waits for another. A thread of this process cannot be lost without telling, and a machine that
 * falls silent or fails ends the wait before; what is left hangs by a defect. The longest honest wait is that for a
 * chunk at great depth: minutes on slow cores. */
static const double RANK_DEADLINE_S = 3600.0;

typedef enum command_kind {
    COMMAND_FURNISH, /* take working memory and open the device */
    COMMAND_OPEN,    /* reserve a session's pages */
    COMMAND_CLOSE,   /* give them back */
    COMMAND_STEP,
    COMMAND_FILL,
    COMMAND_QUIT,   /* end */
    COMMAND_FOLLOW, /* of a rank that is not the head's: receive commands and do them until one is QUIT */
} command_kind;

typedef struct command {
    command_kind kind;
    step step;       /* STEP */
    uint32_t length; /* FILL */
    uint64_t seed;   /* FILL */
} command;

typedef struct rank {
    struct rs_engine *engine;
    uint32_t index;
    pthread_t thread;
    size_t place; /* of its first thread in the topology's deal */
    pool *pool;   /* its threads: its own and the pool's */
    comm *c;
    arena memory; /* its working buffers */
    device *device;
    forward forward;
    bool open;   /* a session is; a rank may hold no pages of it */
    arena pages; /* of the session */
    kv_cache cache;
    rs_status status; /* of the latest command */
    char error[STATUS_TEXT_MAX];
} rank;

struct rs_engine {
    const rs_model *model;
    rs_plan *plan;
    topology *topology;
    local_group *group;             /* of ranks that are threads of this process, or */
    ucx_comm *ucx;                  /* of a cluster's one rank here */
    rs_cluster *cluster;            /* that one's machines */
    bool lacks_model[RS_RANKS_MAX]; /* machines without the model's file, which rank 0 sends their slices */
    struct rs_session *session;     /* the one open, or NULL */
    bool broken;                    /* a command failed: the ranks are no longer in step */

    pthread_mutex_t lock;
    pthread_cond_t posted, finished;
    command command;
    uint64_t generation; /* counts commands */
    uint32_t pending;    /* ranks that have not finished the present one */

    uint32_t first, started; /* the ranks here: [first, first + started) of the plan's */
    rank ranks[RS_RANKS_MAX];
};

/* An engine without ranks. RS_NO_MEMORY. */
rs_status engine_new(const rs_model *model, rs_engine **out);

/* rs_engine_open for ranks that share the mapped file, or that each hold packed slices of the weights: what ranks of
 * one process have no need of, and ranks on several machines do. */
rs_status engine_open(const rs_model *model, const rs_options *options, bool packed, rs_engine **out);

/* Starts the threads of one more rank, next to `first + started`; its first thread gets `place` in the topology's deal.
 * RS_NO_MEMORY. */
rs_status engine_start(rs_engine *e, size_t place, comm *c);

/* Runs a command on all ranks here and waits. On failure the first cause (not the other ranks' echo of it) is returned
 * and set as this thread's error, and the engine is broken. */
rs_status engine_run(rs_engine *e, const command *c);

/* Does a command on a rank; called by its thread. */
rs_status rank_obey(rank *r, const command *c);

#endif
