/* test_price.c: laws of prices: what remains when something costs nothing, what halves when something is shared, and
 * that a price is the same every time and touches no memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm/dry_comm.h"
#include "device/dry.h"
#include "plan/budget.h"
#include "plan/price.h"
#include "tests/tiny_gguf.h"

enum { CONTEXT = 1 << 20, LAYERS = 3 };

/* Eight KV heads and shares that ranks divide; quantisation blocks of one value. */
static const tiny_shape shape = {"llama", 64, 8, 8, 32, 96, LAYERS, 258, CONTEXT, 0};
static rs_model *model;
static rs_machines *cluster; /* large */

static void check(rs_status status) {
    if (status != RS_OK) fail_msg("%s: %s", rs_status_name(status), rs_last_error());
}

static int open_model(void **unused) {
    (void)unused;
    char path[] = "/tmp/ringspan_price_XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    close(file);
    assert_true(tiny_write(&shape, 1, path));
    check(rs_model_open(path, &model));
    unlink(path);
    cluster = calloc(1, sizeof *cluster);
    return cluster == NULL;
}

static int close_model(void **unused) {
    (void)unused;
    rs_model_close(model);
    free(cluster);
    return 0;
}

static rs_machine machine_of(double speed) {
    rs_machine m = {.name = "paper", .memory_bytes = (uint64_t)1 << 40, .threads = 1};
    m.all.small_s = m.all.launch_s = 0;
    m.all.vector_bytes_per_s = 1e11 * speed;
    m.all.read_bytes_per_s = 1e10 * speed;
    for (int i = 0; i < RS_WEIGHT_FORMATS; i++) {
        m.all.weights_bytes_per_s[i] = 1e10 * speed;
        m.all.weights_few_flop_per_s[i] = m.all.weights_many_flop_per_s[i] = 1e11 * speed;
    }
    for (int kv = 0; kv < RS_KV_FORMATS; kv++) {
        for (int q = 0; q < RS_QUERIES; q++) m.all.attend_bytes_per_s[kv][q] = 1e10 * speed;
        m.all.attend_many_flop_per_s[kv] = 1e11 * speed;
    }
    return m;
}

static void set_cluster(uint32_t machines, double speed, double latency_s, double bytes_per_s) {
    memset(cluster, 0, sizeof *cluster);
    cluster->count = machines;
    for (uint32_t i = 0; i < machines; i++) {
        cluster->machine[i] = machine_of(speed);
        for (uint32_t k = 0; k < machines; k++) cluster->link[i][k] = (rs_link){latency_s, bytes_per_s};
    }
}

static rs_options options_of(uint32_t ranks, rs_split split) {
    rs_options o;
    rs_options_init(&o);
    o.context = CONTEXT;
    o.ranks = ranks;
    o.split = split;
    o.threads = 1;
    o.memory_limit = (uint64_t)1 << 62;
    return o;
}

/* Prices one token of a plan at a depth; clocks [ranks] may be NULL. */
static rs_parts token_at(const rs_options *o, uint32_t depth, virtual_clock *clocks) {
    rs_plan *plan;
    price *p;
    rs_parts out;
    uint32_t machine[RS_RANKS_MAX];
    for (uint32_t i = 0; i < RS_RANKS_MAX; i++) machine[i] = i;
    check(plan_make(model, o, (plan_scope){.elsewhere = true}, &plan));
    check(price_open(plan, cluster, machine, &p));
    check(price_step(p, depth, 1, &out, clocks));
    price_close(p);
    rs_plan_free(plan);
    return out;
}

static void assert_near(double a, double b) {
    if (fabs(a - b) > 1e-9 * fmax(fabs(a), fabs(b))) fail_msg("%.12g is not %.12g", a, b);
}

/* With machines and links that take no time for bytes, a token is its exchanges' latencies. */
static void test_only_latency_remains(void **unused) {
    (void)unused;
    const struct {
        rs_split split;
        uint32_t per_layer, besides; /* exchanges; the logits are one more, the hop of a pipeline another */
    } splits[] = {{RS_SPLIT_R4, 4, 1}, {RS_SPLIT_R3, 3, 1}, {RS_SPLIT_R2, 2, 1},
                  {RS_SPLIT_R1, 1, 0}, {RS_SPLIT_TP, 2, 1}, {RS_SPLIT_PP, 0, 3}};
    set_cluster(3, INFINITY, 1e-3, 0);
    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) {
        rs_options o = options_of(3, splits[i].split);
        virtual_clock clocks[RS_RANKS_MAX];
        rs_parts t = token_at(&o, 1000, clocks);
        uint32_t rounds = splits[i].per_layer * LAYERS + splits[i].besides;
        assert_near(parts_sum(&t), 1e-3 * rounds);
        assert_near(t.network, 1e-3 * rounds);
        if (splits[i].split != RS_SPLIT_PP) assert_int_equal(clocks[0].rounds, rounds);
    }
}

/* Between links that take no time N ranks read 1/N of what one reads; a pipeline reads all. */
static void test_work_is_shared(void **unused) {
    (void)unused;
    const uint32_t depth = 64 * 4 * 2 * 100 - 1;
    set_cluster(4, 1, 0, 0);
    rs_options one = options_of(1, RS_SPLIT_AUTO);
    rs_parts alone = token_at(&one, depth, NULL);
    for (uint32_t ranks = 2; ranks <= 4; ranks += 2) {
        for (rs_split split = RS_SPLIT_R1; split <= RS_SPLIT_PP; split++) {
            rs_options o = options_of(ranks, split);
            virtual_clock clocks[RS_RANKS_MAX];
            rs_parts t = token_at(&o, depth, clocks);
            double kv = 0, read = 0;
            for (uint32_t r = 0; r < ranks; r++) {
                kv += clocks[r].own[COST_KV];
                read += clocks[r].own[COST_WEIGHTS];
            }
            bool shared = split != RS_SPLIT_PP;
            assert_true(fabs(kv / alone.kv - 1) < 0.02); /* together they read as much, and merge a little */
            assert_true(fabs(t.kv / (alone.kv / (shared ? ranks : 1)) - 1) < 0.02);
            if (split == RS_SPLIT_R4 || split == RS_SPLIT_TP || split == RS_SPLIT_PP) {
                assert_true(fabs(read / alone.weights - 1) < 1e-6);
            }
            if (split == RS_SPLIT_R1) assert_true(read > (ranks - 1) * alone.weights);
        }
    }
}

static void test_shares_follow(void **unused) {
    (void)unused;
    set_cluster(2, 1, 0, 0);
    rs_options o = options_of(2, RS_SPLIT_R4);
    virtual_clock even[RS_RANKS_MAX], uneven[RS_RANKS_MAX], kv_only[RS_RANKS_MAX];
    token_at(&o, CONTEXT - 1, even);
    o.shares[0] = 3;
    o.shares[1] = 1;
    token_at(&o, CONTEXT - 1, uneven);
    assert_true(fabs(uneven[0].own[COST_KV] / even[0].own[COST_KV] - 1.5) < 0.01);
    assert_true(fabs(uneven[1].own[COST_KV] / even[1].own[COST_KV] - 0.5) < 0.01);
    assert_true(fabs(uneven[0].own[COST_WEIGHTS] / uneven[1].own[COST_WEIGHTS] - 3) < 0.2);
    o.weight_shares[0] = 1; /* and none for the other: it keeps KV only */
    token_at(&o, CONTEXT - 1, kv_only);
    assert_true(kv_only[1].own[COST_WEIGHTS] == 0);
    assert_true(fabs(kv_only[1].own[COST_KV] / uneven[1].own[COST_KV] - 1) < 1e-3);
}

static void test_a_price_repeats_and_touches_nothing(void **unused) {
    (void)unused;
    set_cluster(3, 1, 3e-5, 1e9);
    rs_options o = options_of(3, RS_SPLIT_R4);
    rs_plan *plan;
    price *p;
    rs_parts first, again;
    const uint32_t machine[] = {0, 1, 2};
    check(plan_make(model, &o, (plan_scope){.elsewhere = true}, &plan));
    uint64_t before = budget_resident(NULL, 0);
    check(price_open(plan, cluster, machine, &p));
    check(price_step(p, CONTEXT - 1, 1, &first, NULL));
    uint64_t kv = plan->ranks[0].kv + plan->ranks[1].kv + plan->ranks[2].kv;
    assert_true(kv > (uint64_t)1 << 31);
    assert_true(budget_resident(NULL, 0) < before + (64 << 20));
    for (int i = 0; i < 20; i++) {
        check(price_step(p, CONTEXT - 1, 1, &again, NULL));
        assert_memory_equal(&first, &again, sizeof first);
    }
    check(price_prompt(p, 100000, &first));
    check(price_prompt(p, 100000, &again));
    assert_memory_equal(&first, &again, sizeof first);
    price_close(p);
    rs_plan_free(plan);
}

/* A prompt is priced from a few chunks; here it is short enough to run them all. */
static void check_prompt(double bytes_per_s, uint32_t chunks) {
    set_cluster(3, 1, 3e-5, bytes_per_s);
    rs_options o = options_of(3, RS_SPLIT_R4);
    rs_plan *plan;
    price *p;
    rs_parts whole, chunk;
    const uint32_t machine[] = {0, 1, 2};
    double sum = 0;
    check(plan_make(model, &o, (plan_scope){.elsewhere = true}, &plan));
    check(price_open(plan, cluster, machine, &p));
    check(price_prompt(p, chunks * plan->view.chunk, &whole));
    for (uint32_t i = 0; i < chunks; i++) {
        check(price_step(p, i * plan->view.chunk, plan->view.chunk, &chunk, NULL));
        sum += parts_sum(&chunk);
    }
    assert_true(fabs(parts_sum(&whole) / sum - 1) < 0.03);
    price_close(p);
    rs_plan_free(plan);
}

/* On the slower network what travels counts: first pages, then queries. */
static void test_a_prompt_is_the_sum_of_its_chunks(void **unused) {
    (void)unused;
    check_prompt(1e9, 40);
    check_prompt(1e6, 3);
    check_prompt(1e6, 40);
    check_prompt(1e6, 200);
}

/* Launches are paid per operation, whatever the depth. */
static void test_launches_add_up(void **unused) {
    (void)unused;
    set_cluster(1, INFINITY, 0, 0);
    rs_options o = options_of(1, RS_SPLIT_AUTO);
    cluster->machine[0].all.launch_s = 1;
    rs_parts shallow = token_at(&o, 0, NULL), deep = token_at(&o, CONTEXT - 1, NULL);
    assert_near(parts_sum(&shallow), LAYERS * 5 + 1); /* QKV, attention, O, gate and up, down; and the output */
    assert_near(parts_sum(&deep), parts_sum(&shallow));
}

/* ---- The network ---- */

typedef struct talker {
    comm *c;
    virtual_clock clock;
    void (*work)(struct talker *t);
} talker;

static void *talk(void *argument) {
    talker *t = argument;
    t->work(t);
    return NULL;
}

static void run_talkers(uint32_t ranks, const rs_link *links, void (*work)(talker *t), talker *talkers) {
    dry_group *group;
    pthread_t threads[RS_RANKS_MAX];
    check(dry_group_open(ranks, links, &group));
    for (uint32_t r = 0; r < ranks; r++) {
        talkers[r] = (talker){.work = work};
        talkers[r].c = dry_group_comm(group, r, &talkers[r].clock);
        assert_int_equal(pthread_create(&threads[r], NULL, talk, &talkers[r]), 0);
    }
    for (uint32_t r = 0; r < ranks; r++) pthread_join(threads[r], NULL);
    dry_group_close(group);
}

static void send_thousand(talker *t) {
    comm_part out[2] = {{0}}, in[2] = {{0}};
    if (t->c->rank == 0) {
        virtual_spend(&t->clock, COST_WEIGHTS, 5);
        out[1] = (comm_part){t, 1000};
    } else {
        in[0] = (comm_part){t, 1000};
    }
    assert_int_equal(t->c->exchange(t->c, out, in), RS_OK);
}

/* The receiver's path is the sender's work and the wire; what it did itself was to wait. */
static void test_a_message_brings_its_senders_path(void **unused) {
    (void)unused;
    const rs_link links[4] = {[1] = {2, 100}};
    talker talkers[2];
    run_talkers(2, links, send_thousand, talkers);
    assert_near(talkers[0].clock.path[COST_WEIGHTS], 5);
    assert_near(virtual_now(&talkers[0].clock), 5);
    assert_near(talkers[1].clock.path[COST_WEIGHTS], 5);
    assert_near(talkers[1].clock.path[COST_NETWORK], 2 + 10);
    assert_near(talkers[1].clock.own[COST_NETWORK], 17);
    assert_true(talkers[0].clock.bytes == 1000 && talkers[0].clock.messages == 1 && talkers[1].clock.messages == 0);
}

static void gather_thousand(talker *t) {
    comm_part parts[3];
    for (int p = 0; p < 3; p++) parts[p] = (comm_part){t, 1000};
    assert_int_equal(comm_gather(t->c, t, 1000, parts), RS_OK);
}

/* A link carries one message's bytes at a time: two messages in and two out take twice as long. */
static void test_a_link_carries_one_message_at_a_time(void **unused) {
    (void)unused;
    rs_link links[9];
    talker talkers[3];
    for (int i = 0; i < 9; i++) links[i] = (rs_link){1, 1000};
    run_talkers(3, links, gather_thousand, talkers);
    for (int r = 0; r < 3; r++) assert_near(virtual_now(&talkers[r].clock), 1 + 2);
}

enum { SUM_RANKS = 5 };
static size_t sum_n, sum_room;

static void reduce_floats(talker *t) {
    static float x[SUM_RANKS]; /* stands for more: nothing touches it */
    assert_int_equal(comm_reduce(t->c, x, sum_n, x, sum_room), RS_OK);
}

/* A vector that is reduced at once takes one latency and comes whole from every other rank; a large one in halves takes
 * two, and its 1/N comes from every other rank twice. In pieces each takes its own latencies. */
static void test_a_reduction_costs_its_bytes_and_latencies(void **unused) {
    (void)unused;
    const double latency_s = 0.5, bytes_per_s = 1000;
    const size_t small = 60, large = 60 * REDUCE_AT_ONCE_BYTES; /* floats that 2 to 5 ranks divide */
    rs_link links[SUM_RANKS * SUM_RANKS];
    talker talkers[SUM_RANKS];
    for (int i = 0; i < SUM_RANKS * SUM_RANKS; i++) links[i] = (rs_link){latency_s, bytes_per_s};
    for (uint32_t ranks = 2; ranks <= SUM_RANKS; ranks++) {
        for (int i = 0; i < 4; i++) {
            bool halves = i % 2 == 1 && ranks > 2;
            size_t pieces = i < 2 ? 1 : 4;
            sum_n = i % 2 == 1 ? large : small;
            sum_room = (halves ? sum_n : ranks * sum_n) / pieces;
            run_talkers(ranks, links, reduce_floats, talkers);
            size_t floats = halves ? 2 * (ranks - 1) * sum_n / ranks : (ranks - 1) * sum_n, bytes = 4 * floats;
            for (uint32_t r = 0; r < ranks; r++) {
                const virtual_clock *clock = &talkers[r].clock;
                assert_int_equal(clock->bytes, bytes);
                assert_int_equal(clock->rounds, pieces * (halves ? 2 : 1));
                assert_near(virtual_now(clock), clock->rounds * latency_s + (double)bytes / bytes_per_s);
            }
        }
    }
}

static void stream_and_compute(talker *t) {
    comm_part parts[2] = {{t, 4000}, {t, 4000}};
    assert_int_equal(t->c->begin(t->c, LANE_WEIGHTS, parts, parts), RS_OK);
    virtual_spend(&t->clock, COST_WEIGHTS, 3);
    assert_int_equal(t->c->finish(t->c, LANE_WEIGHTS), RS_OK);
}

/* What goes on in the background costs only what outlasts the work beside it. */
static void test_background_is_hidden(void **unused) {
    (void)unused;
    rs_link links[4];
    talker talkers[2];
    for (int i = 0; i < 4; i++) links[i] = (rs_link){1, 1000};
    run_talkers(2, links, stream_and_compute, talkers);
    assert_near(virtual_now(&talkers[0].clock), 1 + 4);
    for (int i = 0; i < 4; i++) links[i] = (rs_link){1, 4000};
    run_talkers(2, links, stream_and_compute, talkers);
    assert_near(virtual_now(&talkers[0].clock), 3);
    assert_near(talkers[0].clock.own[COST_NETWORK], 0);
}

static void share_two_lanes(talker *t) {
    comm_part bulk[2] = {{t, 4000}, {t, 4000}}, pages[2] = {{t, 1000}, {t, 1000}};
    assert_int_equal(t->c->begin(t->c, LANE_WEIGHTS, bulk, bulk), RS_OK);
    assert_int_equal(t->c->begin(t->c, LANE_PAGES, pages, pages), RS_OK);
    assert_int_equal(t->c->finish(t->c, LANE_PAGES), RS_OK);
    assert_near(virtual_now(&t->clock), 1 + 2);
    assert_int_equal(t->c->exchange(t->c, pages, pages), RS_OK);
    assert_near(virtual_now(&t->clock), 1 + 2 + 1 + 2);
    assert_int_equal(t->c->finish(t->c, LANE_WEIGHTS), RS_OK);
}

/* What meets on a link has equal parts of it until one ends; nothing that it carries is lost or comes twice. */
static void test_lanes_share_the_link(void **unused) {
    (void)unused;
    rs_link links[4];
    talker talkers[2];
    for (int i = 0; i < 4; i++) links[i] = (rs_link){1, 1000};
    run_talkers(2, links, share_two_lanes, talkers);
    assert_near(virtual_now(&talkers[0].clock), 1 + 4 + 1 + 1);
}

/* Spread rows attend to pages while others travel: the parts of a chunk that each of two machines takes. */
static rs_parts chunk_of_pages(const rs_options *o, double speed, double bytes_per_s) {
    const uint32_t machine[] = {0, 1}, depth = 5120;
    rs_plan *plan;
    price *p;
    rs_parts parts;
    set_cluster(2, speed, 0, bytes_per_s);
    check(plan_make(model, o, (plan_scope){.elsewhere = true, .packed = true}, &plan));
    assert_false(travel_as_queries(&plan->view, &(step){.first = depth, .count = o->chunk}, 0));
    check(price_open(plan, cluster, machine, &p));
    check(price_step(p, depth, o->chunk, &parts, NULL));
    price_close(p);
    rs_plan_free(plan);
    return parts;
}

/* Work and network together take no less than either and no more than both in turns, and pages hide behind most of the
 * attention or it behind them. In r4 slices of the weights travel beside them. */
static void test_pages_travel_behind_attention(void **unused) {
    (void)unused;
    for (rs_split split = RS_SPLIT_R1; split <= RS_SPLIT_R4; split += RS_SPLIT_R4 - RS_SPLIT_R1) {
        rs_options o = options_of(2, split);
        o.chunk = 2048;
        o.kv_k = o.kv_v = RS_KV_Q8_0;
        rs_parts work = chunk_of_pages(&o, 1, 0);
        for (double rate = 1e6; rate < 1e11; rate *= 10) {
            rs_parts wire = chunk_of_pages(&o, INFINITY, rate), both = chunk_of_pages(&o, 1, rate);
            double w = parts_sum(&work), n = parts_sum(&wire), t = parts_sum(&both), least = fmin(work.kv, n);
            assert_true(fmax(w, n) <= t * (1 + 1e-9) && t <= (w + n) * (1 + 1e-9));
            assert_true(t <= w + n - 0.5 * least);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_latency_remains),
        cmocka_unit_test(test_work_is_shared),
        cmocka_unit_test(test_shares_follow),
        cmocka_unit_test(test_a_price_repeats_and_touches_nothing),
        cmocka_unit_test(test_a_prompt_is_the_sum_of_its_chunks),
        cmocka_unit_test(test_launches_add_up),
        cmocka_unit_test(test_a_message_brings_its_senders_path),
        cmocka_unit_test(test_a_link_carries_one_message_at_a_time),
        cmocka_unit_test(test_a_reduction_costs_its_bytes_and_latencies),
        cmocka_unit_test(test_background_is_hidden),
        cmocka_unit_test(test_lanes_share_the_link),
        cmocka_unit_test(test_pages_travel_behind_attention),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
