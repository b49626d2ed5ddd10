/* test_deal.c: laws of the page deal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>

#include "base/random.h"
#include "kv/deal.h"

static deal make(arena *memory, uint32_t ranks, uint32_t pages, const double *shares) {
    deal d;
    arena sizes = {0};
    deal_layout(&d, &sizes, ranks, pages);
    assert_int_equal(arena_map(memory, sizes.used), RS_OK);
    deal_layout(&d, memory, ranks, pages);
    assert_int_equal(memory->used, memory->size);
    deal_fill(&d, shares);
    return d;
}

static void random_shares(double *shares, uint32_t ranks, uint64_t *state) {
    for (uint32_t r = 0; r < ranks; r++) shares[r] = 0.05 + random_unit(state);
}

static void test_counts_follow_shares_at_every_length(void **unused) {
    (void)unused;
    uint64_t state = 1;
    for (uint32_t ranks = 1; ranks <= 9; ranks++) {
        double shares[RS_RANKS_MAX], sum = 0.0;
        uint32_t count[RS_RANKS_MAX] = {0};
        arena memory;
        random_shares(shares, ranks, &state);
        for (uint32_t r = 0; r < ranks; r++) sum += shares[r];
        deal d = make(&memory, ranks, 3000, shares);
        for (uint32_t p = 0; p < d.pages; p++) {
            assert_true(d.owner[p] < ranks);
            assert_int_equal(d.ordinal[p], count[d.owner[p]]);
            count[d.owner[p]]++;
            for (uint32_t r = 0; r < ranks; r++) {
                assert_true(fabs(count[r] - (p + 1) * shares[r] / sum) < ranks);
                assert_int_equal(deal_count(&d, r, p + 1), count[r]);
            }
        }
        arena_unmap(&memory);
    }
}

static void test_a_longer_deal_begins_like_a_shorter_one(void **unused) {
    (void)unused;
    const double shares[] = {3, 2, 1};
    arena a, b;
    deal shorter = make(&a, 3, 100, shares), longer = make(&b, 3, 1000, shares);
    assert_memory_equal(shorter.owner, longer.owner, 100);
    arena_unmap(&a);
    arena_unmap(&b);
}

static void test_most_is_the_most_of_any_span(void **unused) {
    (void)unused;
    uint64_t state = 2;
    double shares[4];
    arena memory;
    random_shares(shares, 4, &state);
    deal d = make(&memory, 4, 200, shares);
    for (uint32_t span = 1; span < 210; span += 13) {
        for (uint32_t rank = 0; rank < 4; rank++) {
            uint32_t most = 0;
            for (uint32_t from = 0; from < d.pages; from++) {
                uint32_t n = 0;
                for (uint32_t p = from; p < d.pages && p < from + span; p++) n += d.owner[p] == rank;
                if (n > most) most = n;
            }
            assert_int_equal(deal_most(&d, rank, span), most);
        }
    }
    arena_unmap(&memory);
}

static void test_causal_work_is_balanced(void **unused) {
    (void)unused;
    /* Row p costs p: with 512 pages and unequal ranks, the slowest is within 1 % of the mean. */
    const double shares[] = {4, 2, 1};
    double work[3] = {0}, total = 0.0;
    arena memory;
    deal d = make(&memory, 3, 512, shares);
    for (uint32_t p = 0; p < d.pages; p++) {
        work[d.owner[p]] += p + 0.5;
        total += p + 0.5;
    }
    for (int r = 0; r < 3; r++) assert_true(work[r] / shares[r] < 1.01 * total / 7.0);
    arena_unmap(&memory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts_follow_shares_at_every_length),
        cmocka_unit_test(test_a_longer_deal_begins_like_a_shorter_one),
        cmocka_unit_test(test_most_is_the_most_of_any_span),
        cmocka_unit_test(test_causal_work_is_balanced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
