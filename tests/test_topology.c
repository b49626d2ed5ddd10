/* test_topology.c: laws of the deal of processing units to threads, on imagined machines, and this machine's own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/topology.h"

enum { RANKS = 4 };

typedef struct machine {
    const char *description;
    uint32_t nodes, cores, siblings; /* in a node; of a core */
    size_t cache_bytes;
} machine;

static const machine machines[] = {
    {"pack:1 core:1 pu:1", 1, 1, 1, 0}, {"pack:1 l3:1(size=33554432) l2:2(size=524288) core:1 pu:1", 1, 2, 1, 32 << 20},
    {"pack:1 core:3 pu:2", 1, 3, 2, 0}, {"numa:2 l3:1(size=1048576) core:4 pu:1", 2, 4, 1, 2 << 20},
    {"numa:2 core:5 pu:2", 2, 5, 2, 0}, {"numa:3 l3:2(size=1048576) core:3 pu:1", 3, 6, 1, 6 << 20},
};

/* As an engine shares them out. */
static void share(uint32_t total, uint32_t ranks, uint32_t *threads) {
    for (uint32_t r = 0; r < ranks; r++) threads[r] = total / ranks + (r < total % ranks);
}

static topology *open_imagined(const char *description) {
    topology *t;
    assert_int_equal(topology_open(description, &t), RS_OK);
    return t;
}

static void test_units_are_what_is_described(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++) {
        const machine *m = &machines[i];
        topology *t = open_imagined(m->description);
        assert_int_equal(t->nodes, m->nodes);
        assert_int_equal(t->cores, m->nodes * m->cores);
        assert_int_equal(t->cpus, m->nodes * m->cores * m->siblings);
        assert_int_equal(t->cache_bytes, m->cache_bytes);
        for (uint32_t c = 0; c < t->cpus; c++) {
            assert_int_equal(t->cpu[c].core, c / m->siblings);
            assert_int_equal(t->cpu[c].sibling, c % m->siblings);
            assert_int_equal(t->cpu[c].node, c / (m->cores * m->siblings));
        }
        topology_close(t);
    }
}

/* No unit is lost or dealt twice, and no core is shared while another has none. */
static void check_units(const topology *t, const machine *m) {
    bool seen[64] = {false};
    for (uint32_t i = 0; i < t->cpus; i++) {
        assert_false(seen[t->cpu[i].os_index]);
        seen[t->cpu[i].os_index] = true;
        if (i < t->dealt && t->dealt <= t->cores) assert_int_equal(t->cpu[i].sibling, 0);
    }
    assert_int_equal(t->cpus, m->nodes * m->cores * m->siblings);
}

/* Where every rank fits into a node, each does, and no node has two while another has none. */
static void check_nodes(const topology *t, const machine *m, uint32_t ranks, const uint32_t *threads) {
    uint32_t node_units = t->dealt > t->cores ? m->cores * m->siblings : m->cores;
    if (node_units / threads[0] * m->nodes < ranks) return;
    uint32_t place = 0, of_node[8] = {0};
    for (uint32_t r = 0; r < ranks; r++) {
        if (threads[r] > 0) of_node[t->cpu[place].node]++;
        for (uint32_t i = 1; i < threads[r]; i++) assert_int_equal(t->cpu[place + i].node, t->cpu[place].node);
        place += threads[r];
    }
    uint32_t used = 0, busy = ranks < t->dealt ? ranks : t->dealt;
    for (uint32_t n = 0; n < m->nodes; n++) used += of_node[n] > 0;
    assert_int_equal(used, busy < m->nodes ? busy : m->nodes);
}

static void test_deals_are_disjoint_and_near(void **state) {
    (void)state;
    uint32_t threads[RANKS];
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++) {
        const machine *m = &machines[i];
        for (uint32_t ranks = 1; ranks <= RANKS; ranks++) {
            for (uint32_t total = ranks; total <= m->nodes * m->cores * m->siblings; total++) {
                topology *t = open_imagined(m->description);
                share(total, ranks, threads);
                topology_deal(t, ranks, threads);
                assert_true(topology_roomy(t) && t->dealt == total);
                check_units(t, m);
                check_nodes(t, m, ranks, threads);
                topology_close(t);
            }
        }
    }
}

static void test_a_rank_has_both_threads_of_its_cores_on_a_full_machine(void **state) {
    (void)state;
    topology *t = open_imagined("pack:1 core:4 pu:2");
    topology_deal(t, 2, (uint32_t[]){4, 4});
    for (uint32_t i = 0; i < 8; i++) assert_int_equal(t->cpu[i].core, i / 2);
    topology_close(t);
}

static void test_too_many_threads_have_no_room(void **state) {
    (void)state;
    topology *t = open_imagined("numa:2 core:2 pu:1");
    assert_false(topology_roomy(NULL));
    topology_deal(t, 3, (uint32_t[]){2, 2, 1});
    assert_false(topology_roomy(t));
    check_units(t, &(machine){"", 2, 2, 1});
    topology_deal(t, 3, (uint32_t[]){2, 1, 1});
    assert_true(topology_roomy(t));
    topology_close(t);
}

/* ---- This machine ---- */

static void test_what_cannot_be_read_is_all_alike(void **state) {
    (void)state;
    cpu_set_t before, after;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    topology *t = open_imagined("no machine");
    assert_int_equal(t->cpus, CPU_COUNT(&before));
    assert_true(t->cores == t->cpus && t->nodes == 1 && t->hwloc == NULL);
    topology_deal(t, 1, (uint32_t[]){1});
    topology_pin(t, 0);
    topology_pin(NULL, 0);
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
    topology_close(t);
}

static void *pin_and_look(void *argument) {
    topology *t = argument;
    cpu_set_t before, pinned;
    topology *inside = NULL;
    sched_getaffinity(0, sizeof before, &before);
    topology_pin(t, t->dealt - 1);
    sched_getaffinity(0, sizeof pinned, &pinned);
    bool right = CPU_COUNT(&pinned) == 1 && CPU_ISSET(t->cpu[t->dealt - 1].os_index, &pinned);
    /* A system may refuse; then nothing has changed. */
    right = right || CPU_EQUAL(&before, &pinned);
    /* What a pinned thread opens is its one unit. */
    right = right && topology_open(NULL, &inside) == RS_OK && inside->cpus == (uint32_t)CPU_COUNT(&pinned);
    topology_close(inside);
    return right ? t : NULL;
}

static void test_threads_are_pinned_to_their_unit(void **state) {
    (void)state;
    cpu_set_t set;
    topology *t;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    assert_int_equal(topology_open(NULL, &t), RS_OK);
    assert_true(t->cpus >= 1 && t->cores >= 1 && t->cores <= t->cpus && t->nodes >= 1 && t->nodes <= t->cpus);
    assert_true(t->cpus <= (uint32_t)CPU_COUNT(&set));
    for (uint32_t i = 0; i < t->cpus; i++) assert_true(CPU_ISSET(t->cpu[i].os_index, &set));
    for (uint32_t threads = 1; threads <= t->cpus && threads <= 8; threads++) {
        pthread_t thread;
        void *right = NULL;
        topology_deal(t, 1, &threads);
        assert_int_equal(pthread_create(&thread, NULL, pin_and_look, t), 0);
        pthread_join(thread, &right);
        assert_non_null(right);
    }
    topology_close(t);
    topology_close(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_units_are_what_is_described),
        cmocka_unit_test(test_deals_are_disjoint_and_near),
        cmocka_unit_test(test_a_rank_has_both_threads_of_its_cores_on_a_full_machine),
        cmocka_unit_test(test_too_many_threads_have_no_room),
        cmocka_unit_test(test_what_cannot_be_read_is_all_alike),
        cmocka_unit_test(test_threads_are_pinned_to_their_unit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
