/* test_comm.c: laws of the exchange between ranks, its gather, reduce and hop, and its failures, over every network
 * that one machine has. Ranks are threads of this process, and processes where one is to die. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/random.h"
#include "comm/local.h"
#include "tests/rank_processes.h"

enum { ROUNDS = 200, VALUES = 257 };

typedef struct traffic traffic;

typedef struct member {
    comm *c;
    ucx_comm *u; /* NULL for local ranks */
    void (*work)(struct member *m);
    double deadline_s;
    rs_status status;
    char error[STATUS_TEXT_MAX];
    float values[VALUES];
    bool wrong;
    traffic *kept; /* until all ranks have left */
} member;

static bool over_ucx; /* instead of local */
static bool roomy;    /* the ranks believe to have a core each */
static member members[RS_RANKS_MAX];
static comm_part addresses[RS_RANKS_MAX];
static uint32_t ranks_now;
static pthread_barrier_t all_done;

/* Ranks leave together: one that left would be missed by those still at work. */
static void *member_main(void *argument) {
    member *m = argument;
    uint32_t rank = (uint32_t)(m - members);
    bool ready = m->u == NULL || ucx_connect(m->u, rank, ranks_now, addresses, 7, 60.0) == RS_OK;
    m->wrong = !ready;
    m->c->deadline_s = m->deadline_s;
    pthread_barrier_wait(&all_done);
    if (ready) m->work(m);
    snprintf(m->error, sizeof m->error, "%s", rs_last_error());
    pthread_barrier_wait(&all_done);
    ucx_close(m->u);
    return NULL;
}

/* Runs `work` on every rank of a new group. */
static void run(uint32_t ranks, double deadline_s, void (*work)(member *m)) {
    local_group *group = NULL;
    pthread_t threads[RS_RANKS_MAX];
    ranks_now = ranks;
    pthread_barrier_init(&all_done, NULL, ranks);
    if (!over_ucx) assert_int_equal(local_group_open(ranks, deadline_s, roomy, &group), RS_OK);
    for (uint32_t r = 0; r < ranks; r++) {
        members[r] = (member){.work = work, .deadline_s = deadline_s};
        if (over_ucx) {
            assert_int_equal(ucx_open(roomy, &members[r].u), RS_OK);
            addresses[r].data = (void *)ucx_address(members[r].u, &addresses[r].bytes);
        }
        members[r].c = over_ucx ? ucx_comm_of(members[r].u) : local_group_comm(group, r);
    }
    for (uint32_t r = 0; r < ranks; r++) {
        assert_int_equal(pthread_create(&threads[r], NULL, member_main, &members[r]), 0);
    }
    for (uint32_t r = 0; r < ranks; r++) pthread_join(threads[r], NULL);
    local_group_close(group);
    pthread_barrier_destroy(&all_done);
}

/* What rank `from` has for rank `to` in a round: a size and a byte pattern that both can compute. */
static size_t message_size(uint32_t from, uint32_t to, uint32_t round) {
    uint64_t state = from * 1000003u + to * 10007u + round;
    return random_next(&state) % 4 == 0 ? 0 : random_next(&state) % 3000;
}

static uint8_t message_byte(uint32_t from, uint32_t to, uint32_t round, size_t i) {
    return (uint8_t)(from * 31 + to * 17 + round * 7 + i * 13);
}

static void exchange_random(member *m) {
    uint32_t ranks = m->c->ranks, me = m->c->rank;
    uint8_t *sent[RS_RANKS_MAX], *received[RS_RANKS_MAX];
    for (uint32_t p = 0; p < ranks; p++) {
        sent[p] = malloc(3000);
        received[p] = malloc(3000);
    }
    for (uint32_t round = 0; round < ROUNDS && !m->wrong; round++) {
        comm_part out[RS_RANKS_MAX], in[RS_RANKS_MAX];
        for (uint32_t p = 0; p < ranks; p++) {
            out[p] = (comm_part){sent[p], message_size(me, p, round)};
            in[p] = (comm_part){received[p], message_size(p, me, round)};
            for (size_t i = 0; i < out[p].bytes; i++) sent[p][i] = message_byte(me, p, round, i);
        }
        m->wrong |= m->c->exchange(m->c, out, in) != RS_OK;
        for (uint32_t p = 0; p < ranks; p++) {
            memset(sent[p], 0xEE, 3000); /* what was sent may be overwritten */
            for (size_t i = 0; p != me && i < in[p].bytes; i++) {
                m->wrong |= received[p][i] != message_byte(p, me, round, i);
            }
        }
    }
    for (uint32_t p = 0; p < ranks; p++) {
        free(sent[p]);
        free(received[p]);
    }
}

static void test_exchange_of_any_sizes(void **state) {
    (void)state;
    for (uint32_t ranks = 1; ranks <= 5; ranks++) {
        run(ranks, 60.0, exchange_random);
        for (uint32_t r = 0; r < ranks; r++) assert_false(members[r].wrong);
    }
}

static float value_of(uint32_t rank, size_t i) {
    uint64_t state = rank * 7919u + i;
    return (float)(random_unit(&state) - 0.5) * (float)(1 << (i % 20));
}

/* Vectors of a few values, of as many as are reduced at once at most, and of more; room for all of one or for pieces
 * of it, floats for each rank. */
enum { AT_ONCE = REDUCE_AT_ONCE_BYTES / sizeof(float), LONGEST = AT_ONCE + 1007 };
static const struct {
    size_t n, room;
} sums[] = {{1, 1},
            {4, 4},
            {VALUES, VALUES},
            {VALUES, 20},
            {AT_ONCE, AT_ONCE},
            {AT_ONCE + 1, AT_ONCE + 1},
            {LONGEST, LONGEST / 5},
            {AT_ONCE + 1, AT_ONCE / 4}}; /* four ranks are left with one value in the last piece */
static float expected[LONGEST];

static void reduce_values(member *m) {
    uint32_t ranks = m->c->ranks;
    float *values = malloc(sizeof expected), *x = malloc(sizeof expected);
    for (size_t i = 0; i < LONGEST; i++) values[i] = value_of(m->c->rank, i);
    for (size_t k = 0; k < sizeof sums / sizeof *sums && !m->wrong; k++) {
        float *buffer = malloc(ranks * sums[k].room * sizeof *buffer); /* to the byte, for the sanitizers */
        memcpy(x, values, sizeof expected);
        m->wrong |= comm_reduce(m->c, x, sums[k].n, buffer, ranks * sums[k].room) != RS_OK ||
                    memcmp(x, expected, sums[k].n * sizeof *x) != 0 ||
                    memcmp(x + sums[k].n, values + sums[k].n, (LONGEST - sums[k].n) * sizeof *x) != 0;
        free(buffer);
    }
    if (m->wrong) m->c->abort(m->c);
    free(values);
    free(x);
}

/* Every element is summed in rank order on every rank, whichever way a vector goes and in whatever pieces. */
static void test_reduce_gives_all_ranks_the_same_bits(void **state) {
    (void)state;
    memset(expected, 0, sizeof expected);
    for (uint32_t ranks = 1; ranks <= 5; ranks++) {
        for (size_t i = 0; i < LONGEST; i++) expected[i] += value_of(ranks - 1, i);
        run(ranks, 60.0, reduce_values);
        for (uint32_t r = 0; r < ranks; r++) assert_false(members[r].wrong);
    }
}

static void hop_through(member *m) {
    for (size_t i = 0; i < VALUES; i++) m->values[i] = m->c->rank == 0 ? value_of(0, i) : 0.0f;
    for (uint32_t r = 0; r + 1 < m->c->ranks; r++) {
        m->wrong |= comm_hop(m->c, r, r + 1, m->values, sizeof m->values) != RS_OK;
    }
}

static void test_hops_carry_from_first_to_last(void **state) {
    (void)state;
    run(4, 60.0, hop_through);
    for (uint32_t r = 0; r < 4; r++) {
        assert_false(members[r].wrong);
        assert_memory_equal(members[r].values, members[0].values, sizeof members[0].values);
    }
}

static void two_wait_for_a_third(member *m) {
    if (m->c->rank == 2) return;
    float buffer[3 * VALUES];
    m->status = comm_reduce(m->c, m->values, VALUES, buffer, sizeof buffer / sizeof *buffer);
}

static void test_an_absent_rank_is_late(void **state) {
    (void)state;
    run(3, 0.5, two_wait_for_a_third); /* in which the two find each other on a busy machine, too */
    assert_int_equal(members[0].status, RS_PEER_LATE);
    assert_int_equal(members[1].status, RS_PEER_LATE);
    assert_non_null(strstr(members[0].error, "rank 2"));
}

static void last_aborts(member *m) {
    float buffer[3 * VALUES];
    if (m->c->rank == 2) {
        m->c->abort(m->c);
    } else {
        m->status = comm_reduce(m->c, m->values, VALUES, buffer, sizeof buffer / sizeof *buffer);
    }
}

static void test_abort_wakes_everyone(void **state) {
    (void)state;
    run(3, 60.0, last_aborts);
    assert_int_equal(members[0].status, RS_PEER_LOST);
    assert_int_equal(members[1].status, RS_PEER_LOST);
}

static void sizes_disagree(member *m) {
    comm_part out[2] = {{m->values, 8}, {m->values, 8}}, in[2] = {{m->values + 8, 8}, {m->values + 8, 8}};
    if (m->c->rank == 1) in[0].bytes = 12;
    m->status = m->c->exchange(m->c, out, in);
    if (m->status != RS_OK) m->c->abort(m->c);
}

static void test_sizes_that_disagree_are_an_error(void **state) {
    (void)state;
    run(2, 60.0, sizes_disagree);
    assert_int_equal(members[1].status, RS_BAD_FORMAT);
    assert_non_null(strstr(members[1].error, "expected 12 bytes"));
}

/* ---- The background */

enum { SERIES = 3, BULK_ROUNDS = 24 };

static uint64_t bulk_random(uint32_t from, uint32_t to, uint32_t round, size_t most) {
    uint64_t state = from * 1000003u + to * 10007u + round * 31u + 5;
    uint64_t draw = random_next(&state);
    return draw % 5 == 0 ? 0 : random_next(&state) % (draw % 5 == 1 ? most : 20000);
}

/* The pattern repeats after 256 bytes, so large messages are written and compared by whole blocks. */
static void fill(uint8_t *data, size_t bytes, uint32_t from, uint32_t to, uint32_t round) {
    for (size_t i = 0; i < bytes && i < 256; i++) data[i] = message_byte(from, to, round, i);
    for (size_t at = 256; at < bytes; at += 256) memcpy(data + at, data, bytes - at < 256 ? bytes - at : 256);
}

static bool is_filled(const uint8_t *data, size_t bytes, uint32_t from, uint32_t to, uint32_t round) {
    for (size_t i = 0; i < bytes && i < 256; i++) {
        if (data[i] != message_byte(from, to, round, i)) return false;
    }
    return bytes <= 256 || memcmp(data, data + 256, bytes - 256) == 0;
}

/* Buffers of a rank for each peer. */
struct traffic {
    size_t most; /* bytes of a message */
    uint8_t *sent[RS_RANKS_MAX], *received[RS_RANKS_MAX];
    comm_part out[RS_RANKS_MAX], in[RS_RANKS_MAX];
};

static traffic *traffic_new(uint32_t ranks, size_t most) {
    traffic *t = calloc(1, sizeof *t);
    t->most = most;
    for (uint32_t p = 0; p < ranks; p++) {
        t->sent[p] = malloc(most);
        t->received[p] = malloc(most);
    }
    return t;
}

static void traffic_free(traffic *t) {
    for (uint32_t p = 0; p < RS_RANKS_MAX; p++) {
        free(t->sent[p]);
        free(t->received[p]);
    }
    free(t);
}

static void traffic_prepare(traffic *t, const comm *c, uint32_t round) {
    for (uint32_t p = 0; p < c->ranks; p++) {
        t->out[p] = (comm_part){t->sent[p], bulk_random(c->rank, p, round, t->most)};
        t->in[p] = (comm_part){t->received[p], bulk_random(p, c->rank, round, t->most)};
        fill(t->sent[p], t->out[p].bytes, c->rank, p, round);
        memset(t->received[p], 0x55, t->in[p].bytes);
    }
}

static bool traffic_intact(const traffic *t, const comm *c, uint32_t round) {
    bool intact = true;
    for (uint32_t p = 0; p < c->ranks; p++) {
        intact &= p == c->rank || is_filled(t->received[p], t->in[p].bytes, p, c->rank, round);
    }
    return intact;
}

/* In each round SERIES exchanges in the foreground and one in each lane. A rank begins that at a moment of its own up
 * to one that all have in common, and finishes it then; or later, and the lanes in an order of its own, where bytes
 * move without its help: a local rank copies in finish alone. */
static void overtake(member *m) {
    comm *c = m->c;
    traffic *front = traffic_new(c->ranks, 3000000), *back[LANES];
    uint64_t common = 11, own = c->rank + 1;
    for (int lane = 0; lane < LANES; lane++) back[lane] = traffic_new(c->ranks, 3000000);
    for (uint32_t round = 0; round < BULK_ROUNDS && !m->wrong; round++) {
        uint32_t first[LANES], last[LANES], ahead = round * 100, behind = ahead + 50;
        for (int lane = 0; lane < LANES; lane++) {
            uint32_t middle = random_next(&common) % (SERIES + 1);
            first[lane] = random_next(&own) % (middle + 1);
            last[lane] = over_ucx ? middle + random_next(&own) % (SERIES + 1 - middle) : middle;
        }
        for (uint32_t i = 0; i <= SERIES && !m->wrong; i++) {
            for (uint32_t lane = 0; lane < LANES && !m->wrong; lane++) {
                if (i != first[lane]) continue;
                traffic_prepare(back[lane], c, behind + lane);
                m->wrong |= c->begin(c, lane, back[lane]->out, back[lane]->in) != RS_OK;
            }
            for (uint32_t k = 0; k < LANES && !m->wrong; k++) {
                uint32_t lane = over_ucx ? (c->rank + k) % LANES : k;
                if (i == last[lane]) {
                    m->wrong |= c->finish(c, lane) != RS_OK || !traffic_intact(back[lane], c, behind + lane);
                }
            }
            if (i == SERIES || m->wrong) continue;
            traffic_prepare(front, c, ahead + i);
            m->wrong |= c->exchange(c, front->out, front->in) != RS_OK || !traffic_intact(front, c, ahead + i);
        }
    }
    if (m->wrong) c->abort(c);
    traffic_free(front);
    for (int lane = 0; lane < LANES; lane++) traffic_free(back[lane]);
}

static void test_exchanges_of_any_kind_overtake_others(void **state) {
    (void)state;
    for (uint32_t ranks = 2; ranks <= 4; ranks++) {
        run(ranks, 600.0, overtake);
        for (uint32_t r = 0; r < ranks; r++) assert_false(members[r].wrong);
    }
}

enum { BULK_BYTES = 5 << 20 };

/* Bulk data move while the rank exchanges nothing: the second message is there soon after the first rank asks. */
static void bulk_in_background(member *m) {
    comm *c = m->c;
    traffic *t = traffic_new(c->ranks, BULK_BYTES);
    for (uint32_t p = 0; p < c->ranks; p++) {
        t->out[p] = (comm_part){t->sent[p], BULK_BYTES - c->rank};
        t->in[p] = (comm_part){t->received[p], BULK_BYTES - p};
        fill(t->sent[p], t->out[p].bytes, c->rank, p, 3);
    }
    m->wrong = c->begin(c, LANE_PAGES, t->out, t->in) != RS_OK;
    if (c->rank == 0) usleep(20000);
    m->wrong |= c->finish(c, LANE_PAGES) != RS_OK || !traffic_intact(t, c, 3);
    traffic_free(t);
}

static void test_large_messages_in_the_background(void **state) {
    (void)state;
    run(3, 600.0, bulk_in_background);
    for (uint32_t r = 0; r < 3; r++) assert_false(members[r].wrong);
}

/* ---- More failures */

enum { LATE_BYTES = 1 << 20 };

static atomic_int turns; /* of the two ranks, each of which waits for the other's before its own */

static void await_turn(int turn) {
    while (atomic_load(&turns) < turn) usleep(1000);
}

/* Rank 0 gives up before rank 1 sends. */
static void give_up(member *m) {
    comm *c = m->c;
    uint8_t *data = malloc(LATE_BYTES);
    memset(data, 0x33, LATE_BYTES);
    comm_part part[2] = {{data, LATE_BYTES}, {data, LATE_BYTES}}, none[2] = {0};
    if (c->rank == 0) {
        m->status = c->exchange(c, none, part);
        atomic_store(&turns, 1);
        await_turn(2);
        for (size_t i = 0; i < LATE_BYTES; i++) m->wrong |= data[i] != 0x33;
    } else {
        await_turn(1);
        memset(data, 0x44, LATE_BYTES);
        m->status = c->exchange(c, part, none);
        atomic_store(&turns, 2);
    }
    free(data);
}

static void test_nothing_is_written_after_the_deadline(void **state) {
    (void)state;
    atomic_store(&turns, 0);
    run(2, 0.05, give_up);
    assert_int_equal(members[0].status, RS_PEER_LATE);
    assert_int_not_equal(members[1].status, RS_OK);
    assert_false(members[0].wrong);
}

static void wait_for_ever(member *m) {
    comm *c = m->c;
    if (c->rank == 0) {
        comm_part none[2] = {0}, part[2] = {{m->values, 8}, {m->values, 8}};
        m->status = c->exchange(c, none, part);
        m->wrong = c->exchange(c, none, part) != RS_PEER_LOST || c->begin(c, LANE_PAGES, none, part) != RS_PEER_LOST;
    } else {
        usleep(50000);
        members[0].c->abort(members[0].c);
    }
}

static void test_another_thread_ends_a_wait_for_ever(void **state) {
    (void)state;
    run(2, INFINITY, wait_for_ever);
    assert_int_equal(members[0].status, RS_PEER_LOST);
    assert_false(members[0].wrong);
}

static void abort_the_background(member *m) {
    comm *c = m->c;
    traffic *t = m->kept = traffic_new(3, LATE_BYTES); /* after an abort a local peer may still read what was sent */
    for (uint32_t p = 0; p < 3; p++) {
        t->out[p] = (comm_part){t->sent[p], LATE_BYTES};
        t->in[p] = (comm_part){t->received[p], LATE_BYTES};
    }
    if (c->rank == 1) {
        usleep(20000);
        c->abort(c);
    } else {
        m->status = c->begin(c, LANE_PAGES, t->out, t->in);
        m->status = c->finish(c, LANE_PAGES);
    }
}

static void test_abort_ends_the_background(void **state) {
    (void)state;
    run(3, INFINITY, abort_the_background);
    for (uint32_t r = 0; r < 3; r++) traffic_free(members[r].kept);
    assert_int_equal(members[0].status, RS_PEER_LOST);
    assert_int_equal(members[2].status, RS_PEER_LOST);
}

static void sizes_disagree_downwards(member *m) {
    comm_part out[2] = {{m->values, 12}, {m->values, 12}}, in[2] = {{m->values + 8, 12}, {m->values + 8, 12}};
    if (m->c->rank == 1) in[0].bytes = 8;
    m->status = m->c->exchange(m->c, out, in);
    if (m->status != RS_OK) m->c->abort(m->c);
}

static void test_messages_too_long_are_an_error(void **state) {
    (void)state;
    run(2, 60.0, sizes_disagree_downwards);
    assert_int_equal(members[1].status, RS_BAD_FORMAT);
    assert_non_null(strstr(members[1].error, "expected 8 bytes from rank 0 and got 12"));
}

/* ---- Processes */

static void gather_for_ever(rank_processes *all, ucx_comm *u, rank_report *report) {
    static uint8_t mine[8192], theirs[PROCESSES_MAX][8192];
    comm *c = ucx_comm_of(u);
    comm_part parts[PROCESSES_MAX];
    for (uint32_t p = 0; p < c->ranks; p++) parts[p] = (comm_part){theirs[p], sizeof mine};
    while (report->status == RS_OK) {
        report->status = comm_gather(c, mine, sizeof mine, parts);
        atomic_fetch_add(&report->rounds, 1);
        if (c->rank == 2 && all->reports[2].rounds == 100 && all->deadline_s > 1e9) pause();
    }
}

/* Kills the third of three ranks amid their work, or, `asleep`, long after it has stopped. */
static void kill_a_rank(bool asleep) {
    rank_processes *all =
        processes_start((rank_processes){.ranks = 3, .deadline_s = asleep ? INFINITY : 600.0, .work = gather_for_ever});
    while (atomic_load(&all->reports[2].rounds) < 100 && atomic_load(&all->ended) == 0) processes_nap();
    if (asleep) usleep(300000);
    double killed_s = clock_s();
    kill(all->pids[2], SIGKILL);
    processes_wait(all, 2);
    processes_wait(all, 0);
    processes_wait(all, 1);
    for (uint32_t r = 0; r < 2; r++) {
        const rank_report *report = &all->reports[r];
        print_message("%.0f ms after the kill: %s\n", 1e3 * (report->ended_s - killed_s), report->error);
        assert_int_equal(report->status, RS_PEER_LOST);
        assert_non_null(strstr(report->error, "rank 2"));
    }
    munmap(all, sizeof *all);
}

static void test_survivors_name_a_killed_rank(void **state) {
    (void)state;
    kill_a_rank(false);
}

static void test_survivors_are_woken_by_a_kill(void **state) {
    (void)state;
    kill_a_rank(true);
}

static double own_cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

/* Rank 0 waits two seconds for rank 1. Its processor time, in seconds, is the number of its report. */
static void wait_idly(rank_processes *all, ucx_comm *u, rank_report *report) {
    (void)all;
    comm *c = ucx_comm_of(u);
    uint32_t word = 0;
    if (c->rank == 1) usleep(2000000);
    double before_s = own_cpu_s();
    report->status = comm_hop(c, 1, 0, &word, sizeof word);
    report->number = own_cpu_s() - before_s;
}

static void test_a_waiting_rank_is_idle(void **state) {
    (void)state;
    rank_processes *all =
        processes_start((rank_processes){.ranks = 2, .roomy = true, .deadline_s = INFINITY, .work = wait_idly});
    for (uint32_t r = 0; r < 2; r++) processes_wait(all, r);
    for (uint32_t r = 0; r < 2; r++) assert_int_equal(all->reports[r].status, RS_OK);
    print_message("%.2f %% of a core while waiting\n", 100.0 * all->reports[0].number / 2.0);
    assert_true(all->reports[0].number < 0.05 * 2.0);
    munmap(all, sizeof *all);
}

/* Rank 2 leaves; the others go on with each other until they miss it. */
static void leave_early(rank_processes *all, ucx_comm *u, rank_report *report) {
    comm *c = ucx_comm_of(u);
    uint64_t word = c->rank, theirs[3];
    comm_part parts[3] = {{&theirs[0], 8}, {&theirs[1], 8}, {&theirs[2], 8}}, pair[3] = {parts[0], parts[1], {0}};
    report->status = comm_gather(c, &word, sizeof word, parts);
    if (c->rank == 2 || report->status != RS_OK) return;
    while (atomic_load(&all->ended) == 0) processes_nap();
    usleep(100000);
    for (int i = 0; i < ROUNDS && report->status == RS_OK; i++) {
        report->status = c->exchange(c, pair, pair);
        atomic_fetch_add(&report->rounds, 1);
    }
    if (report->status == RS_OK) report->status = comm_gather(c, &word, sizeof word, parts);
}

static void test_a_rank_that_left_is_missed_when_needed(void **state) {
    (void)state;
    rank_processes *all = processes_start((rank_processes){.ranks = 3, .deadline_s = 600.0, .work = leave_early});
    for (uint32_t r = 0; r < 3; r++) processes_wait(all, r);
    assert_int_equal(all->reports[2].status, RS_OK);
    for (uint32_t r = 0; r < 2; r++) {
        assert_int_equal(all->reports[r].rounds, ROUNDS);
        assert_int_equal(all->reports[r].status, RS_PEER_LOST);
        assert_non_null(strstr(all->reports[r].error, "rank"));
    }
    munmap(all, sizeof *all);
}

/* ---- Epochs */

static void *connect_in_epoch(void *argument) {
    member *m = argument;
    uint32_t rank = (uint32_t)(m - members);
    m->status = ucx_connect(m->u, rank, 2, addresses, 7 + rank, 0.5);
    snprintf(m->error, sizeof m->error, "%s", rs_last_error());
    pthread_barrier_wait(&all_done);
    ucx_close(m->u);
    return NULL;
}

static void test_epochs_do_not_meet(void **state) {
    (void)state;
    pthread_t threads[2];
    pthread_barrier_init(&all_done, NULL, 2);
    for (uint32_t r = 0; r < 2; r++) {
        assert_int_equal(ucx_open(roomy, &members[r].u), RS_OK);
        addresses[r].data = (void *)ucx_address(members[r].u, &addresses[r].bytes);
    }
    for (uint32_t r = 0; r < 2; r++) pthread_create(&threads[r], NULL, connect_in_epoch, &members[r]);
    for (uint32_t r = 0; r < 2; r++) pthread_join(threads[r], NULL);
    for (uint32_t r = 0; r < 2; r++) assert_int_equal(members[r].status, RS_PEER_LATE);
    pthread_barrier_destroy(&all_done);
}

/* ---- Networks */

/* Those of one machine. The second and third differ by what UCX is told through its environment variable. */
typedef struct network {
    const char *name;
    bool over_ucx;
    const char *tls; /* UCX_TLS; NULL: UCX chooses */
} network;

static const network networks[] = {{"local", false, NULL}, {"UCX", true, NULL}, {"UCX over TCP", true, "tcp"}};
enum { NETWORKS = sizeof networks / sizeof *networks };

static void choose(const network *n) {
    over_ucx = n->over_ucx;
    if (n->tls != NULL) setenv("UCX_TLS", n->tls, 1);
    if (n->tls == NULL) unsetenv("UCX_TLS");
}

static int run_processes(const network *n) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_survivors_name_a_killed_rank),
        cmocka_unit_test(test_survivors_are_woken_by_a_kill),
        cmocka_unit_test(test_a_waiting_rank_is_idle),
        cmocka_unit_test(test_a_rank_that_left_is_missed_when_needed),
    };
    choose(n);
    return n->over_ucx ? cmocka_run_group_tests_name(n->name, tests, NULL, NULL) : 0;
}

static int run_threads(const network *n) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exchange_of_any_sizes),
        cmocka_unit_test(test_reduce_gives_all_ranks_the_same_bits),
        cmocka_unit_test(test_hops_carry_from_first_to_last),
        cmocka_unit_test(test_exchanges_of_any_kind_overtake_others),
        cmocka_unit_test(test_large_messages_in_the_background),
        cmocka_unit_test(test_an_absent_rank_is_late),
        cmocka_unit_test(test_nothing_is_written_after_the_deadline),
        cmocka_unit_test(test_abort_wakes_everyone),
        cmocka_unit_test(test_another_thread_ends_a_wait_for_ever),
        cmocka_unit_test(test_abort_ends_the_background),
        cmocka_unit_test(test_sizes_that_disagree_are_an_error),
        cmocka_unit_test(test_messages_too_long_are_an_error),
    };
    const struct CMUnitTest ucx_tests[] = {cmocka_unit_test(test_epochs_do_not_meet)};
    choose(n);
    char name[64];
    snprintf(name, sizeof name, "%s, %s", n->name, roomy ? "a core each" : "cores are shared");
    int failed = cmocka_run_group_tests_name(name, tests, NULL, NULL);
    if (over_ucx) failed += cmocka_run_group_tests_name(name, ucx_tests, NULL, NULL);
    return failed;
}

/* UCX puts itself in the place of madvise, which a thread calls at its very end, when ThreadSanitizer has left it: a
 * crash. UCX reads the variable that keeps it from that when it is loaded. */
static void restart_without_hooks(char **argv) {
#ifdef __SANITIZE_THREAD__
    if (getenv("UCX_MEM_MMAP_HOOK_MODE") != NULL) return;
    setenv("UCX_MEM_MMAP_HOOK_MODE", "none", 1);
    execv("/proc/self/exe", argv);
#endif
    (void)argv;
}

int main(int argc, char **argv) {
    int failed = 0;
    (void)argc;
    restart_without_hooks(argv);
    for (int n = 0; n < NETWORKS; n++) failed += run_processes(&networks[n]); /* first: they fork */
    for (int both = 0; both < 2; both++) {
        roomy = both == 1;
        for (int n = 0; n < NETWORKS; n++) failed += run_threads(&networks[n]);
    }
    return failed;
}
