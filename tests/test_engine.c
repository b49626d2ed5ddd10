/* test_engine.c: laws of sessions on tiny models made here: for the sanitizers, which see ranks, threads and every
 * split at work. Families, formats and sizes in plenty are test_engine.py's and test_matrix.py's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <pthread.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/engine.h"
#include "tests/tiny_gguf.h"

enum { CONTEXT = 512, PROMPT = 200, VOCAB = 259, MODELS = 2 };

/* Shapes that two and three ranks do not divide. A window of 20 leaves a ring of three pages behind. */
static const tiny_shape shapes[MODELS] = {
    {"llama", 48, 5, 5, 32, 70, 2, VOCAB, CONTEXT, 0},
    {"gemma3", 40, 6, 3, 32, 50, 7, VOCAB, CONTEXT, 20},
};
static rs_model *models[MODELS];

/* ThreadSanitizer takes many times as long, and sees in 3 ranks what there is to see in 2 and 4. */
#ifdef __SANITIZE_THREAD__
enum { RANKS_STEP = 2 };
#else
enum { RANKS_STEP = 1 };
#endif

/* ||a - b|| / ||b||. Float arithmetic in another order is 1e-6 off; a K or V value that falls on the other side of a
 * rounding boundary of the f16 cache costs up to 1e-4, of a cache of 8 or 4 bits up to a hundred times that. */
static const double CLOSE_F16 = 1e-3, CLOSE_QUANTISED = 0.1;

static void check(rs_status status) {
    if (status != RS_OK) fail_msg("%s: %s", rs_status_name(status), rs_last_error());
}

static int open_models(void **unused) {
    (void)unused;
    for (int i = 0; i < MODELS; i++) {
        char path[] = "/tmp/ringspan_tiny_XXXXXX";
        int file = mkstemp(path);
        assert_true(file >= 0);
        close(file);
        assert_true(tiny_write(&shapes[i], 1 + (uint64_t)i, path));
        check(rs_model_open(path, &models[i]));
        unlink(path);
    }
    return 0;
}

static int close_models(void **unused) {
    (void)unused;
    for (int i = 0; i < MODELS; i++) rs_model_close(models[i]);
    return 0;
}

/* ---- Helpers ---- */

typedef struct run {
    rs_engine *engine;
    rs_session *session;
} run;

static rs_options options_of(uint32_t ranks, rs_split split, uint32_t threads) {
    rs_options o;
    rs_options_init(&o);
    o.context = CONTEXT;
    o.memory_limit = (uint64_t)4 << 30; /* a sanitizer's own memory is in the sum */
    o.chunk = 64;
    o.ranks = ranks;
    o.split = split;
    o.threads = threads;
    return o;
}

static run begin_as(const rs_model *model, const rs_options *o, bool packed) {
    run r;
    check(engine_open(model, o, packed, &r.engine));
    check(rs_session_open(r.engine, &r.session));
    return r;
}

static run begin(const rs_model *model, const rs_options *o) {
    return begin_as(model, o, false);
}

static void end(run *r) {
    rs_session_close(r->session);
    rs_engine_close(r->engine);
}

static void random_tokens(int32_t *tokens, size_t count, uint64_t seed) {
    for (size_t i = 0; i < count; i++) tokens[i] = (int32_t)(random_next(&seed) % VOCAB);
}

static void eval(run *r, const int32_t *tokens, size_t count, float out[VOCAB]) {
    const float *logits;
    check(rs_session_eval(r->session, tokens, count, NULL, NULL, &logits));
    memcpy(out, logits, VOCAB * sizeof *out);
    assert_int_equal(rs_session_length(r->session), count);
}

/* The logits of a fresh session. */
static void eval_fresh(const rs_model *model, const rs_options *o, const int32_t *tokens, size_t count,
                       float out[VOCAB]) {
    run r = begin(model, o);
    eval(&r, tokens, count, out);
    end(&r);
}

static double distance(const float *a, const float *b) {
    double difference = 0.0, norm = 0.0;
    for (int i = 0; i < VOCAB; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return sqrt(difference / norm);
}

static void assert_close(const float *a, const float *b, double bound) {
    double seen = distance(a, b);
    if (!(seen < bound)) fail_msg("the logits are %g apart, allowed are %g", seen, bound);
}

/* ---- Laws ---- */

/* Every split on one to three ranks and one to five threads gives one rank's logits, from a prompt of several chunks,
 * one token and a few tokens; and the threads change no bit. */
static void test_ranks_and_threads_change_nothing(void **unused) {
    (void)unused;
    int32_t tokens[PROMPT];
    static float reference[3][VOCAB], one[3][VOCAB], got[3][VOCAB];
    const size_t counts[3] = {PROMPT - 8, PROMPT - 7, PROMPT};
    random_tokens(tokens, PROMPT, 5);
    for (int m = 0; m < MODELS; m++) {
        for (uint32_t ranks = 1; ranks <= 3; ranks += RANKS_STEP) {
            for (rs_split split = RS_SPLIT_R1; split < (ranks == 1 ? RS_SPLIT_R2 : RS_SPLITS); split++) {
                for (uint32_t threads = 1; threads <= 5; threads += 2) {
                    rs_options o = options_of(ranks, split, threads);
                    run r = begin(models[m], &o);
                    for (int i = 0; i < 3; i++) eval(&r, tokens, counts[i], got[i]);
                    end(&r);
                    if (threads == 1) memcpy(one, got, sizeof one);
                    if (ranks == 1 && threads == 1) memcpy(reference, got, sizeof reference);
                    assert_memory_equal(got, one, sizeof one);
                    for (int i = 0; i < 3; i++) assert_close(got[i], reference[i], CLOSE_F16);
                }
            }
        }
        assert_true(distance(reference[0], reference[2]) > 0.1);
    }
}

/* Timelines that meet every kind of step: several chunks, whose last may be short; one token; a few; a rewind. */
enum { WAYS = 5 };

static void eval_ways(run *r, const int32_t *tokens, float out[WAYS][VOCAB]) {
    const size_t counts[WAYS] = {PROMPT - 8, PROMPT - 7, PROMPT, 70, 130};
    for (int i = 0; i < WAYS; i++) eval(r, tokens, counts[i], out[i]);
}

/* What one rank gives. */
static void eval_ways_alone(const rs_model *model, const int32_t *tokens, float out[WAYS][VOCAB]) {
    rs_options alone = options_of(1, RS_SPLIT_AUTO, 1);
    run r = begin(model, &alone);
    eval_ways(&r, tokens, out);
    end(&r);
}

/* Ranks that hold nothing but their slices of the weights give what ranks that share the file give: the same bits where
 * no slices travel, for then the same is added in the same order. */
static void test_packed_slices_change_nothing(void **unused) {
    (void)unused;
    static float expected[WAYS][VOCAB], got[WAYS][VOCAB];
    int32_t tokens[PROMPT];
    random_tokens(tokens, PROMPT, 41);
    for (int m = 0; m < MODELS; m++) {
        for (uint32_t ranks = 1; ranks <= 4; ranks += RANKS_STEP) {
            for (rs_split split = RS_SPLIT_R1; split < (ranks == 1 ? RS_SPLIT_R2 : RS_SPLITS); split++) {
                rs_options o = options_of(ranks, split, 2);
                for (uint32_t r = 0; r < ranks; r++) o.shares[r] = split == RS_SPLIT_R3 ? 1 + 2 * r : 1;
                run r = begin(models[m], &o);
                eval_ways(&r, tokens, expected);
                end(&r);
                r = begin_as(models[m], &o, true);
                bool streams = stream_needed(&r.engine->plan->view);
                assert_int_equal(streams, ranks > 1 && split >= RS_SPLIT_R2 && split <= RS_SPLIT_R4);
                if (streams) assert_true(forward_spreads(&r.engine->plan->view, o.chunk));
                eval_ways(&r, tokens, got);
                end(&r);
                if (!streams) assert_memory_equal(got, expected, sizeof got);
                for (int i = 0; i < WAYS; i++) assert_close(got[i], expected[i], CLOSE_F16);
            }
        }
    }
}

/* A rank without weights gives its part of the attention, and in a prompt computes its rows with the others' slices. */
static void test_ranks_may_keep_kv_only(void **unused) {
    (void)unused;
    static float expected[WAYS][VOCAB], got[WAYS][VOCAB];
    static const double weight_shares[][3] = {{0, 1, 1}, {2, 0, 1}, {0, 1, 0}};
    int32_t tokens[PROMPT];
    random_tokens(tokens, PROMPT, 43);
    for (int m = 0; m < MODELS; m++) {
        run r;
        eval_ways_alone(models[m], tokens, expected);
        for (int i = 0; i < 6; i++) {
            rs_options o = options_of(3, RS_SPLIT_R4, 2);
            memcpy(o.weight_shares, weight_shares[i / 2], sizeof weight_shares[0]);
            r = begin_as(models[m], &o, i % 2 == 1);
            eval_ways(&r, tokens, got);
            for (int k = 0; k < 3; k++) {
                const rs_plan_rank *planned = &r.engine->plan->ranks[k];
                assert_true(planned->pages > 0 && (planned->weights > 0) == (o.weight_shares[k] > 0));
            }
            end(&r);
            for (int way = 0; way < WAYS; way++) assert_close(got[way], expected[way], CLOSE_F16);
        }
    }
}

static void assert_as_planned(const rs_engine *e, bool packed) {
    const rs_plan *p = e->plan;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < p->sharding.ranks; i++) {
        const rs_plan_rank *planned = &p->ranks[i];
        const arena *memory = &e->ranks[i].memory;
        assert_int_equal(memory->used, memory->size);
        assert_int_equal(memory->used, planned->activations + planned->wire + planned->slices);
        assert_true(packed ? planned->slices >= planned->weights : planned->slices == 0);
        sum += memory->size + planned->kv;
    }
    assert_int_equal(p->info.ranks, sum);
}

/* Ranks that hold some heads of some pages, in plans of what they take. */
static void test_heads_and_context_may_both_be_cut(void **unused) {
    (void)unused;
    static float expected[WAYS][VOCAB], got[WAYS][VOCAB];
    static const uint32_t grids[][2] = {{4, 2}, {6, 3}, {6, 2}};
    int32_t tokens[PROMPT];
    random_tokens(tokens, PROMPT, 47);
    for (int m = 0; m < MODELS; m++) {
        run r;
        eval_ways_alone(models[m], tokens, expected);
        for (int i = 0; i < 6; i++) {
            rs_options o = options_of(grids[i / 2][0], i % 2 == 0 ? RS_SPLIT_R3 : RS_SPLIT_R4, 2);
            o.tpa = grids[i / 2][1];
            for (int packed = 0; packed < 2; packed++) {
                r = begin_as(models[m], &o, packed);
                assert_as_planned(r.engine, packed);
                eval_ways(&r, tokens, got);
                end(&r);
                for (int way = 0; way < WAYS; way++) assert_close(got[way], expected[way], CLOSE_F16);
            }
        }
    }
}

/* The memory taken is the memory planned, to the byte. */
static void test_plans_are_what_is_taken(void **unused) {
    (void)unused;
    for (int packed = 0; packed < 2; packed++) {
        for (rs_split split = RS_SPLIT_R1; split < RS_SPLITS; split++) {
            rs_options o = options_of(3, split, 2);
            run r = begin_as(models[1], &o, packed);
            assert_as_planned(r.engine, packed);
            if (packed) assert_true(r.engine->plan->info.weights < gguf_file_bytes(models[1]->file) / 2);
            end(&r);
        }
    }
}

/* Queries that travel to the pages and pages that travel to the queries give what one rank gives; so do queries that
 * travel in several portions. */
static void test_queries_or_pages_travel(void **unused) {
    (void)unused;
    enum { LONG = 1900 };
    static int32_t tokens[LONG];
    float expected[VOCAB], got[VOCAB];
    random_tokens(tokens, LONG, 42);
    for (int kv = RS_KV_F16; kv < RS_KV_FORMATS; kv++) {
        rs_options o = options_of(1, RS_SPLIT_AUTO, 2);
        o.kv_k = o.kv_v = (rs_kv_format)kv;
        o.context = 2048;
        o.chunk = 640;
        eval_fresh(models[0], &o, tokens, LONG, expected);
        for (uint32_t ranks = 2; ranks <= 3; ranks++) {
            o.ranks = ranks;
            o.shares[0] = o.shares[1] = ranks;
            o.shares[2] = ranks == 3;
            run r = begin(models[0], &o);
            const model_view *m = &r.engine->plan->view;
            const step first = {NULL, 0, 640, false}, last = {NULL, 1280, LONG - 1280, true};
            assert_false(travel_as_queries(m, &first, 0));
            if (kv == RS_KV_F16) assert_true(travel_as_queries(m, &last, 0) && last.count > QUERY_ROWS);
            eval(&r, tokens, LONG, got);
            assert_close(got, expected, kv == RS_KV_F16 ? CLOSE_F16 : CLOSE_QUANTISED);
            eval(&r, tokens, LONG - 20, got);
            eval(&r, tokens, LONG, got);
            assert_close(got, expected, kv == RS_KV_F16 ? CLOSE_F16 : CLOSE_QUANTISED);
            end(&r);
        }
    }
}

/* Pages that travel in several portions, of which ranks have more or fewer, give what one rank gives, and the same bits
 * each time; so they do beside slices of the weights. */
static void test_pages_travel_in_portions(void **unused) {
    (void)unused;
    enum { LONG = 1000, RANKS = 12 };
    static int32_t tokens[LONG];
    float expected[VOCAB], got[2][VOCAB];
    random_tokens(tokens, LONG, 43);
    rs_options o = options_of(1, RS_SPLIT_R4, 2);
    o.context = o.chunk = 1024;
    eval_fresh(models[0], &o, tokens, LONG, expected);
    o.ranks = RANKS;
    o.shares[0] = RANKS;
    for (int i = 1; i < RANKS; i++) o.shares[i] = 1;
    for (int packed = 0; packed < 2; packed++) {
        for (int i = 0; i < 2; i++) {
            run r = begin_as(models[0], &o, packed);
            const model_view *m = &r.engine->plan->view;
            assert_true(forward_spreads(m, LONG) && stream_needed(m) == packed);
            assert_false(travel_as_queries(m, &(step){NULL, 0, LONG, true}, 0));
            assert_true(deal_count(m->deal, 0, pages_of(LONG)) > 2 * forward_portion(m));
            eval(&r, tokens, LONG, got[i]);
            end(&r);
        }
        assert_close(got[0], expected, CLOSE_F16);
        assert_memory_equal(got[0], got[1], sizeof got[0]);
    }
}

/* Partial sums too many for one piece, and ranks whose buffers differ: all must cut them alike. */
static void test_uneven_ranks_sum_in_the_same_pieces(void **unused) {
    (void)unused;
    const tiny_shape wide = {"llama", 1536, 4, 1, 512, 64, 1, VOCAB, CONTEXT, 0};
    char path[] = "/tmp/ringspan_tiny_XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    close(file);
    assert_true(tiny_write(&wide, 9, path));
    rs_model *model;
    check(rs_model_open(path, &model));
    unlink(path);
    int32_t tokens[16];
    float one[VOCAB], many[VOCAB];
    random_tokens(tokens, 16, 8);
    rs_options o = options_of(1, RS_SPLIT_AUTO, 1);
    o.kv_k = o.kv_v = RS_KV_Q4_0; /* pages so small that the partial sums set the size of the buffer */
    eval_fresh(model, &o, tokens, 16, one);
    o.ranks = o.threads = RS_RANKS_MAX;
    o.split = RS_SPLIT_R4;
    for (uint32_t r = 0; r < o.ranks; r++) o.shares[r] = r == 0 ? 100 : 1;
    eval_fresh(model, &o, tokens, 16, many);
    assert_close(many, one, CLOSE_QUANTISED);
    rs_model_close(model);
}

static void test_kernels_and_formats(void **unused) {
    (void)unused;
    static const char *const sets[] = {"ref", "portable", NULL};
    int32_t tokens[PROMPT];
    float reference[VOCAB], got[VOCAB];
    random_tokens(tokens, PROMPT, 6);
    for (int m = 0; m < MODELS; m++) {
        for (int kv = RS_KV_F16; kv < RS_KV_FORMATS; kv++) {
            for (int k = 0; k < 3; k++) {
                rs_options o = options_of(k == 0 ? 1 : 3, RS_SPLIT_AUTO, 4);
                o.kernels = sets[k];
                o.kv_k = o.kv_v = (rs_kv_format)kv;
                o.shares[0] = 1.0;
                o.shares[1] = k == 0 ? 0.0 : 3.5;
                o.shares[2] = k == 0 ? 0.0 : 2.0;
                eval_fresh(models[m], &o, tokens, 90, got);
                if (k == 0) memcpy(reference, got, sizeof reference);
                assert_close(got, reference, kv == RS_KV_F16 ? CLOSE_F16 : CLOSE_QUANTISED);
            }
        }
    }
}

/* A session driven back and forth gives what a fresh one gives; the window's ring has moved past the shortest one. */
static void test_rewind_append_is_append(void **unused) {
    (void)unused;
    const size_t keeps[] = {0, 300, 290, 60, 63, 64, 65, 10, 400};
    int32_t tokens[CONTEXT] = {0};
    float got[VOCAB], fresh[VOCAB];
    for (int m = 0; m < MODELS; m++) {
        rs_options one = options_of(1, RS_SPLIT_AUTO, 1), o = options_of(3, m == 0 ? RS_SPLIT_AUTO : RS_SPLIT_R2, 4);
        run r = begin(models[m], &o);
        random_tokens(tokens, CONTEXT, 7);
        for (size_t i = 0; i < sizeof keeps / sizeof *keeps; i++) {
            size_t count = i == 0 ? CONTEXT : keeps[i] + 5 + 20 * i < CONTEXT ? keeps[i] + 5 + 20 * i : CONTEXT;
            random_tokens(tokens + keeps[i], CONTEXT - keeps[i], 8 + i);
            eval(&r, tokens, count, got);
            eval_fresh(models[m], &one, tokens, count, fresh);
            assert_close(got, fresh, CLOSE_F16);
        }
        end(&r);
    }
}

typedef struct stop {
    size_t calls, stop_at, done, total;
} stop;

static bool count_call(void *user, size_t done, size_t total) {
    stop *s = user;
    s->done = done;
    s->total = total;
    return ++s->calls != s->stop_at;
}

static void test_cancelling_keeps_what_is_done(void **unused) {
    (void)unused;
    int32_t tokens[PROMPT];
    float whole[VOCAB];
    random_tokens(tokens, PROMPT, 9);
    for (int m = 0; m < MODELS; m++) {
        const float *logits = NULL;
        rs_options o = options_of(3, RS_SPLIT_R3, 3);
        eval_fresh(models[m], &o, tokens, PROMPT, whole);
        run r = begin(models[m], &o);
        stop s = {.stop_at = 2};
        assert_int_equal(rs_session_eval(r.session, tokens, PROMPT, count_call, &s, &logits), RS_CANCELLED);
        assert_null(logits);
        assert_int_equal(rs_session_length(r.session), 128);
        assert_true(s.calls == 2 && s.done == 128 && s.total == PROMPT);
        s = (stop){0};
        check(rs_session_eval(r.session, tokens, PROMPT, count_call, &s, &logits));
        assert_true(s.done == PROMPT - 128 && s.total == PROMPT - 128);
        assert_memory_equal(logits, whole, sizeof whole);
        end(&r);
    }
}

static void test_fills_do_not_depend_on_ranks(void **unused) {
    (void)unused;
    int32_t tokens[301] = {[300] = 5};
    float reference[VOCAB], got[VOCAB];
    for (int m = 0; m < MODELS; m++) {
        for (uint32_t ranks = 1; ranks <= 3; ranks++) {
            for (rs_split split = RS_SPLIT_R1; split < RS_SPLITS; split++) {
                rs_options o = options_of(ranks, split, 2);
                run r = begin(models[m], &o);
                check(rs_session_fill(r.session, 300, 11));
                eval(&r, tokens, 301, got);
                end(&r);
                if (ranks == 1 && split == RS_SPLIT_R1) memcpy(reference, got, sizeof got);
                assert_close(got, reference, CLOSE_F16);
            }
        }
    }
}

static void test_refusals_leave_the_session_as_it_was(void **unused) {
    (void)unused;
    int32_t tokens[CONTEXT + 1];
    float before[VOCAB], after[VOCAB];
    const float *logits = NULL;
    rs_session *second = NULL;
    rs_options o = options_of(3, RS_SPLIT_AUTO, 2);
    run r = begin(models[0], &o);
    random_tokens(tokens, CONTEXT + 1, 12);
    eval(&r, tokens, 100, before);
    eval(&r, tokens, 100, before);
    assert_int_equal(rs_session_eval(r.session, tokens, CONTEXT + 1, NULL, NULL, &logits), RS_LIMIT);
    assert_int_equal(rs_session_eval(r.session, tokens, 0, NULL, NULL, &logits), RS_BAD_ARGUMENT);
    assert_int_equal(rs_session_fill(r.session, CONTEXT + 1, 1), RS_LIMIT);
    assert_int_equal(rs_session_open(r.engine, &second), RS_LIMIT);
    int32_t kept = tokens[99];
    tokens[99] = VOCAB;
    assert_int_equal(rs_session_eval(r.session, tokens, 100, NULL, NULL, &logits), RS_BAD_ARGUMENT);
    tokens[99] = kept;
    assert_true(logits == NULL && second == NULL);
    eval(&r, tokens, 100, after);
    assert_memory_equal(after, before, sizeof after);
    rs_engine_close(r.engine); /* closes the session too */
    o.memory_limit = 1 << 20;
    assert_int_equal(rs_engine_open(models[0], &o, &r.engine), RS_LIMIT);
}

/* ---- Two engines of one model, each in its own thread ---- */

typedef struct job {
    pthread_t thread;
    const rs_model *model;
    rs_options options;
    int32_t tokens[PROMPT];
    float logits[VOCAB];
    rs_status status;
    char error[256];
} job;

static rs_status work(job *j) {
    rs_engine *engine;
    rs_session *session;
    const float *logits;
    rs_status status = rs_engine_open(j->model, &j->options, &engine);
    if (status != RS_OK) return status;
    status = rs_session_open(engine, &session);
    if (status == RS_OK) status = rs_session_eval(session, j->tokens, PROMPT, NULL, NULL, &logits);
    if (status == RS_OK) memcpy(j->logits, logits, sizeof j->logits);
    if (status == RS_OK && rs_session_eval(session, j->tokens, CONTEXT + 1, NULL, NULL, &logits) == RS_OK) {
        status = RS_DEVICE; /* refused it must be */
    }
    snprintf(j->error, sizeof j->error, "%s", rs_last_error());
    rs_engine_close(engine);
    return status;
}

static void *job_main(void *argument) {
    job *j = argument;
    j->status = work(j);
    return NULL;
}

static void test_engines_in_two_threads(void **unused) {
    (void)unused;
    static job jobs[3];
    float expected[VOCAB];
    for (int i = 0; i < 3; i++) {
        jobs[i].model = models[i == 2];
        jobs[i].options = options_of(i == 0 ? 1 : 3, i == 1 ? RS_SPLIT_R1 : RS_SPLIT_AUTO, 2);
        random_tokens(jobs[i].tokens, PROMPT, 20 + (uint64_t)i);
    }
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_create(&jobs[i].thread, NULL, job_main, &jobs[i]), 0);
    for (int i = 0; i < 3; i++) pthread_join(jobs[i].thread, NULL);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(jobs[i].status, RS_OK);
        assert_string_equal(jobs[i].error, "513 tokens do not fit the context of 512");
        eval_fresh(jobs[i].model, &jobs[i].options, jobs[i].tokens, PROMPT, expected);
        assert_memory_equal(jobs[i].logits, expected, sizeof expected);
    }
}

static double cpu_s(void) {
    struct timespec t;
    assert_int_equal(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t), 0);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Of a second in which nothing is asked, a rank or thread that waits awake takes all: a tenth is allowed for the rest
 * of the process. */
static void test_idle_engines_use_no_cpu(void **unused) {
    (void)unused;
    int32_t tokens[20];
    float out[VOCAB];
    random_tokens(tokens, 20, 40);
    for (uint32_t ranks = 1; ranks <= 3; ranks += 2) {
        for (uint32_t threads = 0; threads <= 6; threads += 6) {
            rs_options o = options_of(ranks, RS_SPLIT_AUTO, threads);
            run r = begin(models[0], &o);
            eval(&r, tokens, 20, out);
            double before = cpu_s();
            usleep(1000000);
            double used = cpu_s() - before;
            if (used > 0.1) fail_msg("%u ranks, %u threads: %g s of CPU in a second of sleep", ranks, threads, used);
            end(&r);
        }
    }
}

static void test_sampling(void **unused) {
    (void)unused;
    float logits[VOCAB];
    rs_logprob picked, top[VOCAB + 3];
    rs_sampler *sampler;
    rs_sampling sampling;
    int32_t tokens[90];
    uint64_t state = 3;
    random_tokens(tokens, 90, 30);
    rs_sampling_init(&sampling);
    for (int i = 0; i < 60; i++) {
        sampling.temperature = i % 5 == 0 ? 0.0f : 0.7f;
        sampling.top_k = (uint32_t)(i % 7) * 50;
        sampling.top_p = i % 2 ? 1.0f : 0.8f;
        sampling.frequency_penalty = i % 3 ? 0.0f : 0.5f;
        sampling.seed = (uint64_t)i;
        check(rs_sampler_open(models[0], &sampling, &sampler));
        for (int t = 0; t < VOCAB; t++) logits[t] = 6.0f * (float)random_unit(&state);
        check(rs_sampler_pick(sampler, logits, tokens, (size_t)i, &picked, top, (size_t)(i % 2 ? VOCAB + 3 : i)));
        assert_true(picked.token >= 0 && picked.token < VOCAB && picked.logprob < 0.0f);
        for (int t = 1; i % 2 && t < VOCAB; t++) assert_true(top[t - 1].logprob >= top[t].logprob);
        if (i % 2) assert_int_equal(top[VOCAB].token, -1);
        rs_sampler_close(sampler);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_and_threads_change_nothing),
        cmocka_unit_test(test_packed_slices_change_nothing),
        cmocka_unit_test(test_ranks_may_keep_kv_only),
        cmocka_unit_test(test_heads_and_context_may_both_be_cut),
        cmocka_unit_test(test_plans_are_what_is_taken),
        cmocka_unit_test(test_queries_or_pages_travel),
        cmocka_unit_test(test_pages_travel_in_portions),
        cmocka_unit_test(test_uneven_ranks_sum_in_the_same_pieces),
        cmocka_unit_test(test_kernels_and_formats),
        cmocka_unit_test(test_rewind_append_is_append),
        cmocka_unit_test(test_cancelling_keeps_what_is_done),
        cmocka_unit_test(test_fills_do_not_depend_on_ranks),
        cmocka_unit_test(test_refusals_leave_the_session_as_it_was),
        cmocka_unit_test(test_engines_in_two_threads),
        cmocka_unit_test(test_idle_engines_use_no_cpu),
        cmocka_unit_test(test_sampling),
    };
    return cmocka_run_group_tests(tests, open_models, close_models);
}
