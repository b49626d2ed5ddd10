/* test_slices.c: laws of packed slices: what a rank packs is its slice, and the slices of all ranks make the layer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "model/slices.h"

enum { MATRICES = RUN_MATRICES, SHARES = 4, RANKS = 4, FORMATS = 4 };

/* Two, three and four ranks divide neither heads nor hidden blocks. */
static const hparams shape = {.layers = 1, .dim = 512, .heads = 10, .kv_heads = 5, .head_dim = 256, .ffn_dim = 1792};
static const hparams narrow = {.layers = 1, .dim = 40, .heads = 7, .kv_heads = 7, .head_dim = 6, .ffn_dim = 19};

static const double shares[SHARES][RANKS] = {{1, 1, 1, 1}, {3, 2, 1, 5}, {1, 1, 1000, 1}, {1e-6, 1, 1e-6, 1}};
static const double no_shares[RANKS] = {0};

/* Formats of q, k, v, o, gate, up, down; heads and hidden units of `narrow` fit blocks of one value alone. */
static const format formats[FORMATS][MATRICES] = {
    {FORMAT_F32, FORMAT_F32, FORMAT_F32, FORMAT_F32, FORMAT_F32, FORMAT_F32, FORMAT_F32},
    {FORMAT_F16, FORMAT_BF16, FORMAT_F16, FORMAT_F16, FORMAT_F16, FORMAT_F32, FORMAT_BF16},
    {FORMAT_Q8_0, FORMAT_Q5_0, FORMAT_Q4_1, FORMAT_Q4_0, FORMAT_MXFP4, FORMAT_IQ4_NL, FORMAT_Q5_1},
    {FORMAT_Q4_K, FORMAT_Q2_K, FORMAT_Q6_K, FORMAT_Q4_K, FORMAT_Q3_K, FORMAT_Q5_K, FORMAT_Q6_K},
};

/* ---- Helpers ---- */

static void list_matrices(const layer_weights *l, const matrix *out[MATRICES]) {
    const matrix *const list[MATRICES] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
    memcpy(out, list, sizeof list);
}

static matrix random_matrix(format f, size_t rows, size_t cols, uint64_t *state) {
    matrix m = {NULL, rows, cols, format_bytes(f, cols), f};
    uint8_t *data = malloc(rows * m.row_bytes);
    assert_non_null(data);
    for (size_t i = 0; i < rows * m.row_bytes; i++) data[i] = (uint8_t)(random_next(state) >> 32);
    m.data = data;
    return m;
}

static layer_weights random_layer(const hparams *h, const format f[MATRICES], const float *biases) {
    uint64_t state = 7;
    size_t q = (size_t)h->heads * h->head_dim, kv = (size_t)h->kv_heads * h->head_dim;
    layer_weights l = {.attn_norm = biases, .ffn_norm = biases, .q_bias = biases, .k_bias = biases, .v_bias = biases};
    l.q = random_matrix(f[0], q, h->dim, &state);
    l.k = random_matrix(f[1], kv, h->dim, &state);
    l.v = random_matrix(f[2], kv, h->dim, &state);
    l.o = random_matrix(f[3], h->dim, q, &state);
    l.gate = random_matrix(f[4], h->ffn_dim, h->dim, &state);
    l.up = random_matrix(f[5], h->ffn_dim, h->dim, &state);
    l.down = random_matrix(f[6], h->dim, h->ffn_dim, &state);
    return l;
}

static void free_layer(layer_weights *l) {
    const matrix *list[MATRICES];
    list_matrices(l, list);
    for (int i = 0; i < MATRICES; i++) free((void *)list[i]->data);
}

/* `part` is what `whole` has from its `row` and `byte` in each row on. */
static void assert_part(const matrix *part, const matrix *whole, size_t row, size_t byte) {
    size_t bytes = format_bytes(part->format, part->cols);
    assert_int_equal(part->format, whole->format);
    for (size_t r = 0; r < part->rows && bytes > 0; r++) {
        assert_memory_equal(part->data + r * part->row_bytes, whole->data + (row + r) * whole->row_bytes + byte, bytes);
    }
}

static uint8_t *packed_run(const layer_weights *whole, const hparams *h, const shard *s) {
    size_t bytes = run_bytes(whole, h, s, RUN_Q);
    uint8_t *run = aligned_alloc(ARENA_ALIGN, bytes + ARENA_ALIGN);
    assert_non_null(run);
    memset(run, 0xEE, bytes + ARENA_ALIGN);
    run_pack(whole, h, s, run);
    for (size_t i = 0; i < ARENA_ALIGN; i++) assert_int_equal(run[bytes + i], 0xEE);
    return run;
}

/* ---- Laws ---- */

static void check_view(const layer_weights *whole, const hparams *h, const shard *s, const uint8_t *run) {
    layer_weights slice = layer_slice(whole, h, s->heads, s->kv_heads, s->o_heads, s->ffn);
    layer_weights view = run_view(whole, h, s, RUN_Q, run);
    const matrix *slices_of[MATRICES], *views[MATRICES];
    list_matrices(&slice, slices_of);
    list_matrices(&view, views);
    for (int i = 0; i < MATRICES; i++) {
        assert_int_equal(views[i]->rows, slices_of[i]->rows);
        assert_int_equal(views[i]->cols, slices_of[i]->cols);
        assert_int_equal((size_t)(views[i]->data - run) % ARENA_ALIGN, 0);
        assert_part(views[i], slices_of[i], 0, 0);
    }
    assert_ptr_equal(view.q_bias, slice.q_bias);
    assert_ptr_equal(view.k_bias, slice.k_bias);
    assert_ptr_equal(view.v_bias, slice.v_bias);
    assert_ptr_equal(view.attn_norm, slice.attn_norm);
}

/* The parts' rows (of o and down columns) follow each other and are the whole. */
static void check_whole(const layer_weights *parts, uint32_t n, const layer_weights *whole) {
    const matrix *wholes[MATRICES], *list[MATRICES];
    size_t done[MATRICES] = {0};
    list_matrices(whole, wholes);
    for (uint32_t p = 0; p < n; p++) {
        list_matrices(&parts[p], list);
        for (int i = 0; i < MATRICES; i++) {
            bool columns = i == RUN_O || i == RUN_DOWN;
            size_t byte = columns ? format_bytes(list[i]->format, done[i]) : 0;
            assert_part(list[i], wholes[i], columns ? 0 : done[i], byte);
            if (columns && list[i]->cols > 0) assert_int_equal(list[i]->rows, wholes[i]->rows);
            if (!columns && list[i]->rows > 0) assert_int_equal(list[i]->cols, wholes[i]->cols);
            done[i] += columns ? list[i]->cols : list[i]->rows;
        }
        if (parts[p].q.rows > 0) assert_ptr_equal(parts[p].q_bias, whole->q_bias + (done[RUN_Q] - parts[p].q.rows));
        if (parts[p].v.rows > 0) assert_ptr_equal(parts[p].v_bias, whole->v_bias + (done[RUN_V] - parts[p].v.rows));
    }
    for (int i = 0; i < MATRICES; i++) {
        assert_int_equal(done[i], i == RUN_O || i == RUN_DOWN ? wholes[i]->cols : wholes[i]->rows);
    }
}

/* Every rank packs; what travels of each run is its end; every rank then has the whole layer. */
static void check_sharding(const layer_weights *whole, const hparams *h, const sharding *s) {
    uint8_t *packed[RANKS];
    const uint8_t *sent[RANKS];
    layer_weights parts[RANKS];
    run_matrix first = run_travels_from(s);
    for (uint32_t r = 0; r < s->ranks; r++) {
        packed[r] = packed_run(whole, h, &s->of[r]);
        check_view(whole, h, &s->of[r], packed[r]);
        sent[r] = packed[r] + run_bytes(whole, h, &s->of[r], RUN_Q) - run_bytes(whole, h, &s->of[r], first);
    }
    for (uint32_t r = 0; r < s->ranks; r++) {
        layer_weights own = run_view(whole, h, &s->of[r], RUN_Q, packed[r]);
        run_join(whole, h, s, r, &own, sent, parts);
        check_whole(parts, s->ranks, whole);
    }
    for (uint32_t r = 0; r < s->ranks; r++) free(packed[r]);
}

/* With all the ways to cut KV heads in which no two ranks have the same slices. */
static void check_split(const layer_weights *whole, const hparams *h, const weights *w, rs_split split, uint32_t ranks,
                        const double *of_ranks) {
    for (uint32_t tpa = 1; tpa == 1 || (split == RS_SPLIT_R4 && tpa < ranks); tpa++) {
        sharding s;
        if (ranks % tpa != 0) continue;
        assert_int_equal(sharding_make(h, w, split, ranks, tpa, of_ranks, no_shares, &s), RS_OK);
        check_sharding(whole, h, &s);
    }
}

static void test_slices_make_the_layer(void **unused) {
    (void)unused;
    static const float biases[10 * 256];
    for (int f = 0; f < FORMATS; f++) {
        const hparams *h = f == 0 ? &narrow : &shape;
        layer_weights whole = random_layer(h, formats[f], biases);
        weights w = {.layers = &whole};
        for (uint32_t ranks = 1; ranks <= RANKS; ranks++) {
            for (int i = 0; i < SHARES; i++) {
                for (rs_split split = RS_SPLIT_R1; split < RS_SPLITS; split++) {
                    check_split(&whole, h, &w, split, ranks, shares[i]);
                }
            }
        }
        free_layer(&whole);
    }
}

/* What only some splits slice is all that travels. */
static void test_what_travels(void **unused) {
    (void)unused;
    layer_weights whole = random_layer(&shape, formats[2], NULL);
    weights w = {.layers = &whole};
    const run_matrix first[] = {[RS_SPLIT_R1] = RUN_MATRICES, [RS_SPLIT_R2] = RUN_GATE, [RS_SPLIT_R3] = RUN_O,
                                [RS_SPLIT_R4] = RUN_Q,        [RS_SPLIT_TP] = RUN_Q,    [RS_SPLIT_PP] = RUN_MATRICES};
    for (rs_split split = RS_SPLIT_R1; split < RS_SPLITS; split++) {
        sharding s;
        size_t bytes = 0;
        assert_int_equal(sharding_make(&shape, &w, split, 3, 1, no_shares, no_shares, &s), RS_OK);
        assert_int_equal(run_travels_from(&s), first[split]);
        for (uint32_t r = 0; r < 3; r++) bytes += run_bytes(&whole, &shape, &s.of[r], first[split]);
        if (first[split] == RUN_MATRICES) assert_int_equal(bytes, 0);
        if (first[split] == RUN_Q) assert_true(bytes >= layer_bytes(&whole) && bytes < layer_bytes(&whole) + 2048);
    }
    free_layer(&whole);
}

/* A walk without memory adds up what a walk with memory takes, and packed slices are all in it. */
static void test_layout_is_what_it_takes(void **unused) {
    (void)unused;
    uint64_t state = 3;
    layer_weights whole = random_layer(&shape, formats[3], NULL);
    weights w = {.output = random_matrix(FORMAT_Q6_K, 99, shape.dim, &state), .layers = &whole};
    for (uint32_t ranks = 1; ranks <= RANKS; ranks++) {
        sharding s;
        hparams h = shape;
        h.vocab = 99;
        assert_int_equal(sharding_make(&h, &w, RS_SPLIT_R4, ranks, 1, shares[1], no_shares, &s), RS_OK);
        for (uint32_t r = 0; r < ranks; r++) {
            arena sizes = {0}, views = {0}, real;
            slices measured, placed;
            slices_layout(&measured, &sizes, &h, &w, &s.of[r], true);
            slices_layout(&measured, &views, &h, &w, &s.of[r], false);
            assert_int_equal(arena_map(&real, sizes.used), RS_OK);
            slices_layout(&placed, &real, &h, &w, &s.of[r], true);
            assert_int_equal(real.used, sizes.used);
            assert_true(sizes.used >= views.used + sharding_weight_bytes(&s, &h, &w, r));
            assert_true(placed.output.data >= real.base && placed.output.data <= real.base + real.size);
            run_pack(&whole, &h, &s.of[r], (uint8_t *)placed.layers[0].q.data);
            check_view(&whole, &h, &s.of[r], placed.layers[0].q.data);
            arena_unmap(&real);
        }
    }
    free((void *)w.output.data);
    free_layer(&whole);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slices_make_the_layer),
        cmocka_unit_test(test_what_travels),
        cmocka_unit_test(test_layout_is_what_it_takes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
