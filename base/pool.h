/* pool.h: a fixed set of threads that share the items of one job after another. */
#ifndef RS_BASE_POOL_H
#define RS_BASE_POOL_H

#include <stddef.h>

#include "base/status.h"
#include "base/topology.h"

typedef struct pool pool;

/* Does item `item` of the job; `thread` in [0, threads) tells whose scratch to use. */
typedef void (*pool_work)(void *job, size_t item, size_t thread);

/* threads >= 1, the caller of pool_run included: it is thread 0 and no business of the pool. Thread i is pinned to
 * `place` + i of what `t` has dealt (base/topology.h); NULL: nowhere. Between jobs threads wait awake for a moment if
 * all that were dealt to have room, then sleep. `t` must outlive the pool. RS_NO_MEMORY. */
rs_status pool_open(size_t threads, const topology *t, size_t place, pool **out);
void pool_close(pool *p);
size_t pool_threads(const pool *p);

/* Runs items 0..items, in any order on any thread, and returns when all are done. One caller at a time. */
void pool_run(pool *p, pool_work work, void *job, size_t items);

#endif
