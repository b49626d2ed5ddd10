/* topology.c: units from hwloc, and their deal to threads. */
#include "base/topology.h"

#include <assert.h>
#include <hwloc.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- Reading ---- */

/* A loaded topology, or NULL. Devices and the like are left out: looking for them takes most of the time. */
static hwloc_topology_t load(const char *imagined) {
    hwloc_topology_t h;
    if (hwloc_topology_init(&h) != 0) return NULL;
    hwloc_topology_set_io_types_filter(h, HWLOC_TYPE_FILTER_KEEP_NONE);
    hwloc_topology_set_type_filter(h, HWLOC_OBJ_MISC, HWLOC_TYPE_FILTER_KEEP_NONE);
    bool known = imagined == NULL || hwloc_topology_set_synthetic(h, imagined) == 0;
    if (known && hwloc_topology_load(h) == 0) return h;
    hwloc_topology_destroy(h);
    return NULL;
}

/* The unit's NUMA node, as hwloc numbers them; 0 when it has none. */
static unsigned node_of(hwloc_topology_t h, unsigned os_index) {
    hwloc_obj_t node = NULL;
    while ((node = hwloc_get_next_obj_by_type(h, HWLOC_OBJ_NUMANODE, node)) != NULL) {
        if (hwloc_bitmap_isset(node->cpuset, os_index)) return node->logical_index;
    }
    return 0;
}

static hwloc_obj_t last_cache_of(hwloc_obj_t unit) {
    hwloc_obj_t last = NULL;
    for (hwloc_obj_t o = unit; o != NULL; o = o->parent) {
        if (hwloc_obj_type_is_dcache(o->type)) last = o;
    }
    return last;
}

/* Appends a unit. hwloc lists units of one core, cache and node together, but for nodes see number_nodes. */
static void append(topology *t, hwloc_topology_t h, hwloc_obj_t unit, hwloc_obj_t *core, hwloc_obj_t *cache) {
    hwloc_obj_t own_core = hwloc_get_ancestor_obj_by_type(h, HWLOC_OBJ_CORE, unit), own_cache = last_cache_of(unit);
    bool same = t->cpus > 0 && own_core != NULL && own_core == *core;
    if (!same) t->cores++;
    if (own_cache != NULL && own_cache != *cache) t->cache_bytes += own_cache->attr->cache.size;
    t->cpu[t->cpus] = (topology_cpu){.os_index = unit->os_index,
                                     .core = t->cores - 1,
                                     .sibling = same ? t->cpu[t->cpus - 1].sibling + 1 : 0,
                                     .node = node_of(h, unit->os_index)};
    t->cpus++;
    *core = own_core;
    *cache = own_cache;
}

/* Numbers the nodes that have a unit from 0. */
static void number_nodes(topology *t) {
    for (uint32_t left = 0; left < t->cpus; t->nodes++) {
        uint32_t least = UINT32_MAX;
        for (uint32_t i = 0; i < t->cpus; i++) {
            if (t->cpu[i].node >= t->nodes && t->cpu[i].node < least) least = t->cpu[i].node;
        }
        for (uint32_t i = 0; i < t->cpus; i++) {
            if (t->cpu[i].node != least) continue;
            t->cpu[i].node = t->nodes;
            left++;
        }
    }
}

/* Units of `h` that the calling thread may use. False where there is none or no memory. */
static bool fill(topology *t, hwloc_topology_t h) {
    int units = hwloc_get_nbobjs_by_type(h, HWLOC_OBJ_PU);
    hwloc_bitmap_t mine = hwloc_bitmap_alloc();
    t->cpu = units > 0 ? calloc((size_t)units, sizeof *t->cpu) : NULL;
    if (mine == NULL || t->cpu == NULL) {
        hwloc_bitmap_free(mine);
        return false;
    }
    bool here = hwloc_topology_is_thissystem(h) && hwloc_get_cpubind(h, mine, HWLOC_CPUBIND_THREAD) == 0;
    hwloc_obj_t core = NULL, cache = NULL;
    for (int i = 0; i < units; i++) {
        hwloc_obj_t unit = hwloc_get_obj_by_type(h, HWLOC_OBJ_PU, (unsigned)i);
        if (!here || hwloc_bitmap_isset(mine, unit->os_index)) append(t, h, unit, &core, &cache);
    }
    hwloc_bitmap_free(mine);
    number_nodes(t);
    return t->cpus > 0;
}

/* What can be said without hwloc: as many units as the affinity mask has, all alike. */
static rs_status fill_blind(topology *t) {
    cpu_set_t set;
    long n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t cpus = n > 0 ? (uint32_t)n : 1;
    free(t->cpu);
    *t = (topology){.cpus = cpus, .cores = cpus, .nodes = 1, .cpu = calloc(cpus, sizeof *t->cpu)};
    if (t->cpu == NULL) return status_fail(RS_NO_MEMORY, "no memory for the list of %u cores", cpus);
    for (uint32_t i = 0; i < cpus; i++) t->cpu[i] = (topology_cpu){.os_index = i, .core = i};
    return RS_OK;
}

rs_status topology_open(const char *imagined, topology **out) {
    topology *t = calloc(1, sizeof *t);
    if (t == NULL) return status_fail(RS_NO_MEMORY, "no memory for the list of cores");
    hwloc_topology_t h = load(imagined);
    rs_status status = RS_OK;
    if (h != NULL && fill(t, h)) {
        t->hwloc = h;
    } else {
        if (h != NULL) hwloc_topology_destroy(h);
        status = fill_blind(t);
    }
    if (status != RS_OK) {
        topology_close(t);
        return status;
    }
    *out = t;
    return RS_OK;
}

void topology_close(topology *t) {
    if (t == NULL) return;
    if (t->hwloc != NULL) hwloc_topology_destroy(t->hwloc);
    free(t->cpu);
    free(t);
}

/* ---- Dealing ---- */

/* Units not dealt yet, from `next` on, of a node; of those only first ones of a core unless siblings count. */
static uint32_t room(const topology *t, uint32_t next, uint32_t node, bool siblings) {
    uint32_t n = 0;
    for (uint32_t i = next; i < t->cpus; i++) {
        if (t->cpu[i].node == node && (siblings || t->cpu[i].sibling == 0)) n++;
    }
    return n;
}

static uint32_t roomiest_node(const topology *t, uint32_t next, bool siblings) {
    uint32_t best = 0, most = 0;
    for (uint32_t node = 0; node < t->nodes; node++) {
        uint32_t n = room(t, next, node, siblings);
        if (n <= most) continue;
        best = node;
        most = n;
    }
    return best;
}

/* Moves the node's best unit to `next`, the others keep their order. */
static void deal_one(topology *t, uint32_t next, uint32_t node, bool siblings_last) {
    uint32_t best = UINT32_MAX;
    for (uint32_t i = next; i < t->cpus; i++) {
        if (t->cpu[i].node != node) continue;
        if (best == UINT32_MAX || (siblings_last && t->cpu[i].sibling < t->cpu[best].sibling)) best = i;
    }
    assert(best != UINT32_MAX);
    topology_cpu unit = t->cpu[best];
    memmove(&t->cpu[next + 1], &t->cpu[next], (best - next) * sizeof unit);
    t->cpu[next] = unit;
}

void topology_deal(topology *t, uint32_t ranks, const uint32_t *threads) {
    t->dealt = 0;
    for (uint32_t r = 0; r < ranks; r++) t->dealt += threads[r];
    if (!topology_roomy(t)) return;
    /* Where every unit is used, a rank had better have both threads of its cores. */
    bool siblings = t->dealt > t->cores, siblings_last = t->dealt < t->cpus;
    uint32_t next = 0;
    for (uint32_t r = 0; r < ranks; r++) {
        for (uint32_t left = threads[r]; left > 0;) {
            uint32_t node = roomiest_node(t, next, siblings);
            for (uint32_t n = room(t, next, node, siblings); n > 0 && left > 0; n--, left--) {
                deal_one(t, next++, node, siblings_last);
            }
        }
    }
}

bool topology_roomy(const topology *t) {
    return t != NULL && t->dealt <= t->cpus;
}

/* ---- Pinning ---- */

void topology_pin(const topology *t, size_t place) {
    if (!topology_roomy(t) || t->hwloc == NULL || place >= t->dealt || !hwloc_topology_is_thissystem(t->hwloc)) return;
    hwloc_bitmap_t unit = hwloc_bitmap_alloc();
    if (unit == NULL) return;
    hwloc_bitmap_only(unit, t->cpu[place].os_index);
    (void)hwloc_set_cpubind(t->hwloc, unit, HWLOC_CPUBIND_THREAD);
    hwloc_bitmap_free(unit);
}
