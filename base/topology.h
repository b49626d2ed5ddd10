/* topology.h: the processing units that this process may use, what they share, and which thread gets which. Read
 * through hwloc; where hwloc knows nothing or may do nothing, everything works, unpinned. */
#ifndef RS_BASE_TOPOLOGY_H
#define RS_BASE_TOPOLOGY_H

#include <stddef.h>

#include "base/status.h"

/* One hardware thread; a core has several with SMT. */
typedef struct topology_cpu {
    uint32_t os_index; /* the operating system's number */
    uint32_t core;     /* in [0, cores) */
    uint32_t sibling;  /* 0 for the first of its core, 1 for the second, ... */
    uint32_t node;     /* in [0, nodes) */
} topology_cpu;

typedef struct topology {
    uint32_t cpus;      /* in the affinity mask of the thread that opened it and in the cgroup's cpuset; >= 1 */
    uint32_t cores;     /* that those belong to, >= 1 */
    uint32_t nodes;     /* NUMA nodes of those, >= 1 */
    size_t cache_bytes; /* of their last-level caches, each counted once; 0 when unknown */
    topology_cpu *cpu;  /* [cpus] in the order of the hardware, or as dealt */
    uint32_t dealt;     /* threads dealt to; 0 before topology_deal */
    void *hwloc;        /* its handle; NULL: pinning is not possible */
} topology;

/* Reads this machine, or what hwloc's synthetic description `imagined` says (for tests; such a one pins nothing). Takes
 * milliseconds. RS_NO_MEMORY. */
rs_status topology_open(const char *imagined, topology **out);
void topology_close(topology *t);

/* Deals units to the threads of ranks by putting cpu[] in their order: first the threads[0] of rank 0, then those of
 * rank 1, and so on. A rank stays within a NUMA node where one has room, ranks spread over nodes, and no core gets a
 * second thread before all have one. With more threads than units nobody is pinned: a thread that floats beside pinned
 * ones could only share a core, and the kernel could not even that out. */
void topology_deal(topology *t, uint32_t ranks, const uint32_t *threads);

/* Whether each thread dealt to has a unit of its own, so that waiting awake takes none from another. False for NULL. */
bool topology_roomy(const topology *t);

/* Pins the calling thread to cpu[place]. Does nothing for NULL, without room, and where the system refuses: a pinned
 * thread is faster, not more right. */
void topology_pin(const topology *t, size_t place);

#endif
