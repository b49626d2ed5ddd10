/* test_comm.c: laws of the exchange between local ranks, its gather, reduce and hop, and its failures. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "comm/local.h"

enum { ROUNDS = 200, VALUES = 257 };

typedef struct member {
    comm *c;
    void (*work)(struct member *m);
    rs_status status;
    char error[STATUS_TEXT_MAX];
    float values[VALUES];
    bool wrong;
} member;

static void *member_main(void *argument) {
    member *m = argument;
    m->work(m);
    snprintf(m->error, sizeof m->error, "%s", rs_last_error());
    return NULL;
}

static bool roomy; /* the ranks wait awake for a moment */

/* Runs `work` on every rank of a new group. */
static void run(uint32_t ranks, double deadline_s, void (*work)(member *m), member *members) {
    local_group *group;
    pthread_t threads[RS_RANKS_MAX];
    assert_int_equal(local_group_open(ranks, deadline_s, roomy, &group), RS_OK);
    for (uint32_t r = 0; r < ranks; r++) {
        members[r] = (member){.c = local_group_comm(group, r), .work = work};
        assert_int_equal(pthread_create(&threads[r], NULL, member_main, &members[r]), 0);
    }
    for (uint32_t r = 0; r < ranks; r++) pthread_join(threads[r], NULL);
    local_group_close(group);
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
    member members[RS_RANKS_MAX];
    for (uint32_t ranks = 1; ranks <= 5; ranks++) {
        run(ranks, 60.0, exchange_random, members);
        for (uint32_t r = 0; r < ranks; r++) assert_false(members[r].wrong);
    }
}

static float value_of(uint32_t rank, size_t i) {
    uint64_t state = rank * 7919u + i;
    return (float)(random_unit(&state) - 0.5) * (float)(1 << (i % 20));
}

static void reduce_values(member *m) {
    /* Groups of an odd number of ranks sum in pieces. */
    size_t room = (size_t)m->c->ranks * (m->c->ranks % 2 ? 20 : VALUES);
    float *buffer = malloc(room * sizeof *buffer);
    for (size_t i = 0; i < VALUES; i++) m->values[i] = value_of(m->c->rank, i);
    m->status = comm_reduce(m->c, m->values, VALUES, buffer, room);
    free(buffer);
}

static void test_reduce_gives_all_ranks_the_same_bits(void **state) {
    (void)state;
    member members[RS_RANKS_MAX];
    for (uint32_t ranks = 1; ranks <= 4; ranks++) {
        run(ranks, 60.0, reduce_values, members);
        for (uint32_t r = 0; r < ranks; r++) {
            assert_int_equal(members[r].status, RS_OK);
            assert_memory_equal(members[r].values, members[0].values, sizeof members[0].values);
        }
        for (size_t i = 0; i < VALUES; i++) {
            float sum = value_of(0, i);
            for (uint32_t r = 1; r < ranks; r++) sum += value_of(r, i);
            assert_true(members[0].values[i] == sum);
        }
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
    member members[RS_RANKS_MAX];
    run(4, 60.0, hop_through, members);
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
    member members[RS_RANKS_MAX];
    run(3, 0.05, two_wait_for_a_third, members);
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
    member members[RS_RANKS_MAX];
    run(3, 60.0, last_aborts, members);
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
    member members[RS_RANKS_MAX];
    run(2, 60.0, sizes_disagree, members);
    assert_int_equal(members[1].status, RS_BAD_FORMAT);
    assert_non_null(strstr(members[1].error, "expected 12 bytes"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exchange_of_any_sizes),
        cmocka_unit_test(test_reduce_gives_all_ranks_the_same_bits),
        cmocka_unit_test(test_hops_carry_from_first_to_last),
        cmocka_unit_test(test_an_absent_rank_is_late),
        cmocka_unit_test(test_abort_wakes_everyone),
        cmocka_unit_test(test_sizes_that_disagree_are_an_error),
    };
    int failed = cmocka_run_group_tests_name("sleeping", tests, NULL, NULL);
    roomy = true;
    return failed + cmocka_run_group_tests_name("awake", tests, NULL, NULL);
}
