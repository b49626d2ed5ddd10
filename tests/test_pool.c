/* test_pool.c: laws of the thread pool: every item of every job is done exactly once, on a thread that exists. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/pool.h"

enum { ITEMS_MAX = 300, JOBS = 400 };

typedef struct counts {
    atomic_int done[ITEMS_MAX];
    atomic_int threads_wrong;
    size_t threads;
    int plain[ITEMS_MAX]; /* written without a lock: the pool itself orders one job after another */
} counts;

static void count(void *job, size_t item, size_t thread) {
    counts *c = job;
    atomic_fetch_add(&c->done[item], 1);
    if (thread >= c->threads) atomic_fetch_add(&c->threads_wrong, 1);
    c->plain[item]++;
}

/* Imagined, so that threads wait awake, unpinned, whatever runs the test; or NULL, so that they sleep at once. */
static topology *cores;

static void test_every_item_once(void **state) {
    (void)state;
    for (size_t threads = 1; threads <= 5; threads++) {
        pool *p;
        assert_int_equal(pool_open(threads, cores, 0, &p), RS_OK);
        assert_int_equal(pool_threads(p), threads);
        static counts c;
        memset(&c, 0, sizeof c);
        c.threads = threads;
        int expected[ITEMS_MAX] = {0};
        for (size_t job = 0; job < JOBS; job++) {
            size_t items = job * 7 % (ITEMS_MAX + 1);
            pool_run(p, count, &c, items);
            for (size_t i = 0; i < items; i++) expected[i]++;
            /* Now and then long enough for the workers to fall asleep. */
            if (job % 100 == 99) usleep(5000);
        }
        for (size_t i = 0; i < ITEMS_MAX; i++) {
            assert_int_equal(c.done[i], expected[i]);
            assert_int_equal(c.plain[i], expected[i]);
        }
        assert_int_equal(c.threads_wrong, 0);
        pool_close(p);
    }
}

static void test_a_pool_without_work_closes(void **state) {
    (void)state;
    for (int i = 0; i < 50; i++) {
        pool *p;
        assert_int_equal(pool_open(3, cores, 0, &p), RS_OK);
        if (i % 2) usleep(500);
        pool_close(p);
    }
    pool_close(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_item_once),
        cmocka_unit_test(test_a_pool_without_work_closes),
    };
    int failed = cmocka_run_group_tests_name("sleeping", tests, NULL, NULL);
    if (topology_open("pack:1 core:5 pu:1", &cores) != RS_OK) return 1;
    topology_deal(cores, 1, (uint32_t[]){5});
    failed += cmocka_run_group_tests_name("awake", tests, NULL, NULL);
    topology_close(cores);
    return failed;
}
