/* test_base.c: laws of the base layer: UTF-8, arenas that measure and place alike, errors per thread. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/random.h"
#include "base/status.h"
#include "base/text.h"

/* ---- UTF-8 */

static void every_code_point_comes_back(void **state) {
    (void)state;
    for (uint32_t c = 0; c <= 0x10FFFF; c++) {
        bool surrogate = c >= 0xD800 && c <= 0xDFFF;
        char bytes[4];
        size_t n = utf8_encode(c, bytes);
        int32_t back;
        size_t used = utf8_decode(bytes, n, &back);
        assert_int_equal(back, surrogate ? -1 : (int32_t)c);
        assert_int_equal(used, surrogate ? 1 : n);
    }
}

/* RFC 3629's grammar by arithmetic instead of by ranges of bytes: decode blindly, then refuse what encodes shorter. */
static int32_t decode_slowly(const uint8_t *s, size_t bytes, size_t *length) {
    *length = 1;
    if (s[0] < 0x80) return s[0];
    size_t n = s[0] >> 5 == 6 ? 2 : s[0] >> 4 == 14 ? 3 : s[0] >> 3 == 30 ? 4 : 0;
    if (n == 0 || n > bytes) return -1;
    int32_t value = s[0] & (0x7F >> n);
    for (size_t i = 1; i < n; i++) {
        if (s[i] >> 6 != 2) return -1;
        value = value << 6 | (s[i] & 0x3F);
    }
    static const int32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (value < least[n] || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) return -1;
    *length = n;
    return value;
}

static void every_four_bytes_decode_as_the_grammar_says(void **state) {
    (void)state;
    /* Bytes at the edges of all ranges stand for the rest. */
    static const uint8_t edges[] = {0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF,
                                    0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xF8, 0xFF};
    enum { N = sizeof edges };
    for (size_t i = 0; i < N * N * N * N; i++) {
        uint8_t s[4] = {edges[i % N], edges[i / N % N], edges[i / N / N % N], edges[i / N / N / N]};
        for (size_t bytes = 1; bytes <= 4; bytes++) {
            size_t expected_length;
            int32_t expected = decode_slowly(s, bytes, &expected_length), got;
            size_t length = utf8_decode((const char *)s, bytes, &got);
            if (got != expected || length != expected_length) {
                fail_msg("%02x %02x %02x %02x of %zu: %d, expected %d", s[0], s[1], s[2], s[3], bytes, got, expected);
            }
        }
    }
}

/* Partial means: some continuation makes it one valid character that uses all the bytes given and more. */
static bool can_be_completed(const uint8_t *s, size_t bytes) {
    static const uint8_t tails[] = {0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF};
    enum { N = sizeof tails };
    for (size_t i = 0; i < N * N * N; i++) {
        uint8_t whole[4] = {0};
        memcpy(whole, s, bytes);
        size_t rest = i;
        for (size_t j = bytes; j < 4; j++, rest /= N) whole[j] = tails[rest % N];
        size_t length;
        if (decode_slowly(whole, 4, &length) >= 0 && length > bytes) return true;
    }
    return false;
}

static void partial_is_what_can_be_completed(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 1 << 16; i++) {
        uint8_t s[3] = {(uint8_t)(i >> 8), (uint8_t)i, 0x80};
        for (size_t bytes = 1; bytes <= 3; bytes++) {
            if (utf8_is_partial((const char *)s, bytes) != can_be_completed(s, bytes)) {
                fail_msg("%02x %02x 80 of %zu bytes", s[0], s[1], bytes);
            }
        }
    }
    assert_false(utf8_is_partial("", 0));
}

static void views_compare_by_bytes(void **state) {
    (void)state;
    assert_true(str_equal((str){NULL, 0}, str_of("")));
    assert_true(str_equal_text((str){"abc", 2}, "ab"));
    assert_false(str_equal_text((str){"a\0b", 3}, "a"));
    assert_false(str_equal((str){"a\0b", 3}, (str){"a\0c", 3}));
}

/* ---- Arena */

static size_t lay_out(arena *a, uint64_t seed, uint8_t **places, size_t *sizes, size_t n) {
    for (size_t i = 0; i < n; i++) {
        sizes[i] = random_next(&seed) % 3000;
        places[i] = arena_take(a, sizes[i], 1);
    }
    return a->used;
}

static void placing_takes_what_measuring_said(void **state) {
    (void)state;
    enum { N = 50 };
    uint8_t *places[N];
    size_t sizes[N];
    for (uint64_t seed = 0; seed < 20; seed++) {
        arena measured = {0}, real;
        size_t bytes = lay_out(&measured, seed, places, sizes, N);
        assert_null(places[N - 1]);
        assert_int_equal(arena_map(&real, bytes), RS_OK);
        assert_int_equal(lay_out(&real, seed, places, sizes, N), bytes);
        for (size_t i = 0; i < N; i++) {
            assert_int_equal((uintptr_t)places[i] % ARENA_ALIGN, 0);
            for (size_t j = 0; j < sizes[i]; j++) assert_int_equal(places[i][j], 0);
            memset(places[i], 0xFF, sizes[i]); /* so that an overlap with a later buffer shows as a byte not 0 */
        }
        arena_unmap(&real);
        assert_null(real.base);
    }
}

static void overflow_is_remembered(void **state) {
    (void)state;
    arena a = {0};
    arena_take(&a, SIZE_MAX / 2, 3);
    arena_take(&a, 1, 1);
    assert_true(a.used == SIZE_MAX);
    arena b = {0};
    arena_take(&b, 1, SIZE_MAX - 10);
    assert_true(b.used == SIZE_MAX);
    assert_int_equal(arena_map(&a, SIZE_MAX), RS_NO_MEMORY);
    assert_null(a.base);
    assert_int_equal(arena_map(&a, 0), RS_OK);
    arena_unmap(&a);
}

static void sizes_saturate(void **state) {
    (void)state;
    assert_true(size_mul(SIZE_MAX / 2, 2) == SIZE_MAX - 1);
    assert_true(size_mul(SIZE_MAX / 2 + 1, 2) == SIZE_MAX);
    assert_true(size_mul(0, SIZE_MAX) == 0);
    assert_true(size_add(SIZE_MAX - 1, 1) == SIZE_MAX);
    assert_true(size_add(SIZE_MAX, 1) == SIZE_MAX);
}

/* ---- Errors, time, chance */

static void *fail_elsewhere(void *result) {
    bool none_yet = rs_last_error()[0] == '\0';
    status_fail(RS_IO, "there");
    *(bool *)result = none_yet && strcmp(rs_last_error(), "there") == 0;
    return NULL;
}

static void errors_belong_to_their_thread(void **state) {
    (void)state;
    assert_int_equal(status_fail(RS_LIMIT, "%s %d", "here", 1), RS_LIMIT);
    bool right = false;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, &right), 0);
    pthread_join(thread, NULL);
    assert_true(right);
    assert_string_equal(rs_last_error(), "here 1");
    status_fail(RS_IO, "it failed %s", rs_last_error());
    assert_string_equal(rs_last_error(), "it failed here 1");
}

static void long_errors_are_cut(void **state) {
    (void)state;
    status_fail(RS_IO, "%0*d", 2 * STATUS_TEXT_MAX, 0);
    assert_int_equal(strlen(rs_last_error()), STATUS_TEXT_MAX - 1);
}

static void every_status_has_its_name(void **state) {
    (void)state;
    for (int i = RS_OK; i <= RS_DEVICE; i++) {
        assert_string_not_equal(rs_status_name((rs_status)i), "unknown status");
        for (int j = RS_OK; j < i; j++) {
            assert_string_not_equal(rs_status_name((rs_status)i), rs_status_name((rs_status)j));
        }
    }
    assert_string_equal(rs_status_name((rs_status)(RS_DEVICE + 1)), "unknown status");
    assert_string_equal(rs_status_name((rs_status)-1), "unknown status");
}

static void time_goes_on(void **state) {
    (void)state;
    double before = clock_s();
    struct timespec later = clock_after(1.75);
    double after = clock_s(), instant = (double)later.tv_sec + 1e-9 * (double)later.tv_nsec;
    assert_true(after >= before);
    assert_true(instant >= before + 1.75 - 1e-6 && instant <= after + 1.75 + 1e-6);
    for (int i = 0; i < 1000; i++) {
        long nanoseconds = clock_after(0.001 * i).tv_nsec;
        assert_true(nanoseconds >= 0 && nanoseconds < 1000000000L);
    }
}

static void random_repeats_and_is_even(void **state) {
    (void)state;
    /* SplitMix64 from seed 1234567, as published with the Java reference. */
    uint64_t a = 1234567, b = 1234567;
    assert_true(random_next(&a) == UINT64_C(6457827717110365317));
    assert_true(random_next(&b) == UINT64_C(6457827717110365317));
    assert_true(random_next(&a) == random_next(&b));
    double sum = 0;
    for (int i = 0; i < 100000; i++) {
        double x = random_unit(&a);
        assert_true(x >= 0 && x < 1);
        sum += x;
    }
    assert_true(sum > 49500 && sum < 50500); /* five standard deviations are 456 */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_point_comes_back),
        cmocka_unit_test(every_four_bytes_decode_as_the_grammar_says),
        cmocka_unit_test(partial_is_what_can_be_completed),
        cmocka_unit_test(views_compare_by_bytes),
        cmocka_unit_test(placing_takes_what_measuring_said),
        cmocka_unit_test(overflow_is_remembered),
        cmocka_unit_test(sizes_saturate),
        cmocka_unit_test(errors_belong_to_their_thread),
        cmocka_unit_test(long_errors_are_cut),
        cmocka_unit_test(every_status_has_its_name),
        cmocka_unit_test(time_goes_on),
        cmocka_unit_test(random_repeats_and_is_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
