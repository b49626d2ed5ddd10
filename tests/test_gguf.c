/* test_gguf.c: files built in memory, read back; and every way to break them, each with its sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/random.h"
#include "model/gguf.h"

/* ---- A small writer ---- */

enum { FILE_MAX = 1 << 16 };

typedef struct writer {
    uint8_t data[FILE_MAX];
    size_t bytes;
} writer;

static void put(writer *w, const void *data, size_t bytes) {
    assert_true(w->bytes + bytes <= FILE_MAX);
    memcpy(w->data + w->bytes, data, bytes);
    w->bytes += bytes;
}

static void put_u8(writer *w, uint8_t value) {
    put(w, &value, sizeof value);
}

static void put_u32(writer *w, uint32_t value) {
    put(w, &value, sizeof value);
}

static void put_u64(writer *w, uint64_t value) {
    put(w, &value, sizeof value);
}

static void put_str(writer *w, const char *text) {
    put_u64(w, strlen(text));
    put(w, text, strlen(text));
}

static void put_header(writer *w, uint32_t version, uint64_t tensors, uint64_t pairs) {
    w->bytes = 0;
    put(w, "GGUF", 4);
    put_u32(w, version);
    put_u64(w, tensors);
    put_u64(w, pairs);
}

static void put_key(writer *w, const char *key, uint32_t kind) {
    put_str(w, key);
    put_u32(w, kind);
}

static void put_pair_u32(writer *w, const char *key, uint32_t value) {
    put_key(w, key, GGUF_U32);
    put_u32(w, value);
}

static void put_tensor(writer *w, const char *name, uint32_t type, uint64_t cols, uint64_t rows, uint64_t offset) {
    put_str(w, name);
    put_u32(w, 2);
    put_u64(w, cols);
    put_u64(w, rows);
    put_u32(w, type);
    put_u64(w, offset);
}

static void put_padding(writer *w, size_t alignment) {
    while (w->bytes % alignment != 0) put_u8(w, 0);
}

/* A valid file with a value of each kind, two arrays and two tensors. */
static void put_good(writer *w, uint32_t version) {
    put_header(w, version, 2, 15);
    put_pair_u32(w, "general.alignment", 64);
    put_key(w, "u8", GGUF_U8);
    put_u8(w, 200);
    put_key(w, "i8", GGUF_I8);
    put_u8(w, (uint8_t)-5);
    put_key(w, "u16", GGUF_U16);
    put(w, &(uint16_t){60000}, 2);
    put_key(w, "i16", GGUF_I16);
    put(w, &(int16_t){-6000}, 2);
    put_pair_u32(w, "u32", 4000000000u);
    put_key(w, "i32", GGUF_I32);
    put_u32(w, (uint32_t)-70000);
    put_key(w, "f32", GGUF_F32);
    put(w, &(float){1.5f}, 4);
    put_key(w, "bool", GGUF_BOOL);
    put_u8(w, 1);
    put_key(w, "string", GGUF_STRING);
    put_str(w, "h\xC3\xA9llo");
    put_key(w, "u64", GGUF_U64);
    put_u64(w, UINT64_MAX);
    put_key(w, "i64", GGUF_I64);
    put_u64(w, (uint64_t)-9);
    put_key(w, "f64", GGUF_F64);
    put(w, &(double){-2.25}, 8);
    put_key(w, "strings", GGUF_ARRAY);
    put_u32(w, GGUF_STRING);
    put_u64(w, 3);
    put_str(w, "one");
    put_str(w, "");
    put_str(w, "three");
    put_key(w, "floats", GGUF_ARRAY);
    put_u32(w, GGUF_F32);
    put_u64(w, 2);
    put(w, (float[]){0.25f, -8.0f}, 8);
    put_tensor(w, "a.weight", FORMAT_Q8_0, 64, 3, 0);
    put_tensor(w, "b.weight", FORMAT_F32, 5, 2, 256);
    put_padding(w, 64);
    for (int i = 0; i < 256 + 40; i++) put_u8(w, (uint8_t)i);
}

/* The status, and *out on success; data lies in a block of exactly its size so that a sanitizer sees any overrun. */
static rs_status parse_exact(const uint8_t *data, size_t bytes, gguf **out, uint8_t **copy) {
    *copy = malloc(bytes > 0 ? bytes : 1);
    memcpy(*copy, data, bytes);
    return gguf_parse(*copy, bytes, out);
}

/* The file is refused with this status and a sentence that contains `expected`. */
static void refused(const writer *w, rs_status status, const char *expected) {
    gguf *file = NULL;
    uint8_t *copy;
    rs_status found = parse_exact(w->data, w->bytes, &file, &copy);
    if (found != status || strstr(rs_last_error(), expected) == NULL) {
        fail_msg("expected '%s' with '%s', found '%s' with '%s'", rs_status_name(status), expected,
                 rs_status_name(found), found == RS_OK ? "" : rs_last_error());
    }
    assert_null(file);
    free(copy);
}

static gguf *accepted(const writer *w) {
    gguf *file = NULL;
    rs_status status = gguf_parse(w->data, w->bytes, &file);
    if (status != RS_OK) fail_msg("refused: %s", rs_last_error());
    return file;
}

static writer w;

/* ---- What a good file says ---- */

static void check_integers(const gguf *file) {
    static const struct {
        const char *key;
        int64_t value;
    } expected[] = {{"u8", 200},           {"i8", -5},      {"u16", 60000}, {"i16", -6000},
                    {"u32", 4000000000ll}, {"i32", -70000}, {"i64", -9}};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        int64_t value = 0;
        uint64_t natural = 7;
        assert_int_equal(gguf_get_int(file, expected[i].key, &value), RS_OK);
        assert_int_equal(value, expected[i].value);
        rs_status status = gguf_get_uint(file, expected[i].key, &natural);
        assert_int_equal(status, value < 0 ? RS_BAD_FORMAT : RS_OK);
        assert_int_equal(natural, value < 0 ? 7 : value);
    }
    uint64_t largest = 0;
    int64_t untouched = 7;
    assert_int_equal(gguf_get_uint(file, "u64", &largest), RS_OK);
    assert_true(largest == UINT64_MAX);
    assert_int_equal(gguf_get_int(file, "u64", &untouched), RS_BAD_FORMAT);
    assert_int_equal(untouched, 7);
}

static void check_others(const gguf *file) {
    float number = 0;
    bool flag = false;
    str text = {0};
    assert_int_equal(gguf_get_float(file, "f32", &number), RS_OK);
    assert_true(number == 1.5f);
    assert_int_equal(gguf_get_float(file, "f64", &number), RS_OK);
    assert_true(number == -2.25f);
    assert_int_equal(gguf_get_bool(file, "bool", &flag), RS_OK);
    assert_true(flag);
    assert_int_equal(gguf_get_str(file, "string", &text), RS_OK);
    assert_true(str_equal_text(text, "h\xC3\xA9llo"));

    gguf_array array = {0};
    str strings[3];
    assert_int_equal(gguf_get_array(file, "strings", &array), RS_OK);
    assert_int_equal(array.kind, GGUF_STRING);
    assert_int_equal(array.count, 3);
    gguf_array_strings(&array, strings);
    assert_true(str_equal_text(strings[0], "one"));
    assert_true(str_equal_text(strings[1], ""));
    assert_true(str_equal_text(strings[2], "three"));
    assert_int_equal(gguf_get_array(file, "floats", &array), RS_OK);
    assert_int_equal(array.count, 2);
    assert_true(gguf_array_float(&array, 0) == 0.25f);
    assert_true(gguf_array_float(&array, 1) == -8.0f);
}

static void check_tensors(const gguf *file) {
    assert_int_equal(gguf_tensor_count(file), 2);
    const gguf_tensor *a = gguf_tensor_find(file, "a.weight");
    const gguf_tensor *b = gguf_tensor_find(file, "b.weight");
    assert_ptr_equal(a, gguf_tensor_at(file, 0));
    assert_ptr_equal(b, gguf_tensor_at(file, 1));
    assert_null(gguf_tensor_find(file, "c.weight"));
    assert_null(gguf_tensor_find(file, ""));
    assert_int_equal(a->format, FORMAT_Q8_0);
    assert_int_equal(a->dims, 2);
    assert_int_equal(a->shape[0], 64);
    assert_int_equal(a->shape[1], 3);
    assert_int_equal(a->shape[2], 1);
    assert_int_equal(a->shape[3], 1);
    assert_int_equal(a->bytes, 3 * 2 * 34);
    assert_int_equal(b->bytes, 40);
    assert_ptr_equal(b->data, a->data + 256);
    assert_ptr_equal(b->data + b->bytes, gguf_data(file) + gguf_file_bytes(file));
    assert_int_equal(a->data[10], 10);
}

static void good_files(void **state) {
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) {
        put_good(&w, version);
        gguf *file = accepted(&w);
        check_integers(file);
        check_others(file);
        check_tensors(file);
        assert_int_equal(gguf_file_bytes(file), w.bytes);
        assert_true(gguf_heap_bytes(file) > 15 * 32 && gguf_heap_bytes(file) < 16384);
        assert_true(gguf_has(file, "u8"));
        assert_false(gguf_has(file, "u"));
        gguf_close(file);
    }
    gguf_close(NULL);
}

static void absent_keys_keep_the_default(void **state) {
    (void)state;
    put_good(&w, 3);
    gguf *file = accepted(&w);
    uint64_t natural = 1;
    int64_t integer = 2;
    float number = 3;
    bool flag = true;
    str text = str_of("4");
    gguf_array array = {.count = 5};
    assert_int_equal(gguf_get_uint(file, "absent", &natural), RS_OK);
    assert_int_equal(gguf_get_int(file, "absent", &integer), RS_OK);
    assert_int_equal(gguf_get_float(file, "absent", &number), RS_OK);
    assert_int_equal(gguf_get_bool(file, "absent", &flag), RS_OK);
    assert_int_equal(gguf_get_str(file, "absent", &text), RS_OK);
    assert_int_equal(gguf_get_array(file, "absent", &array), RS_OK);
    assert_int_equal(natural, 1);
    assert_int_equal(integer, 2);
    assert_true(number == 3 && flag && str_equal_text(text, "4"));
    assert_int_equal(array.count, 5);
    gguf_close(file);
}

/* Each getter against each kind: right for its own, RS_BAD_FORMAT with both names for all others. */
static void wrong_kinds(void **state) {
    (void)state;
    static const char *const keys[] = {"u8",   "i8",     "u16", "i16", "u32", "i32",     "f32",
                                       "bool", "string", "u64", "i64", "f64", "strings", "floats"};
    put_good(&w, 3);
    gguf *file = accepted(&w);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const char *key = keys[i];
        bool integer = strchr("ui", key[0]) != NULL;
        bool number = strcmp(key, "f32") == 0 || strcmp(key, "f64") == 0;
        uint64_t n;
        float f;
        bool b;
        str s;
        gguf_array a;
        if (!integer) assert_int_equal(gguf_get_uint(file, key, &n), RS_BAD_FORMAT);
        assert_int_equal(gguf_get_float(file, key, &f), number ? RS_OK : RS_BAD_FORMAT);
        assert_int_equal(gguf_get_bool(file, key, &b), strcmp(key, "bool") == 0 ? RS_OK : RS_BAD_FORMAT);
        assert_int_equal(gguf_get_str(file, key, &s), strcmp(key, "string") == 0 ? RS_OK : RS_BAD_FORMAT);
        assert_int_equal(gguf_get_array(file, key, &a), i >= 12 ? RS_OK : RS_BAD_FORMAT);
    }
    uint64_t n;
    assert_int_equal(gguf_get_uint(file, "floats", &n), RS_BAD_FORMAT);
    assert_string_equal(rs_last_error(), "metadata key 'floats' should be an integer and is an array of f32");
    gguf_close(file);
}

static void array_items_of_each_kind(void **state) {
    (void)state;
    static const uint64_t bits[2] = {0xFEDCBA9876543281u, 0x0102030405060708u};
    static const struct {
        gguf_kind kind;
        int64_t second;
    } expected[] = {{GGUF_U8, 0x32},
                    {GGUF_I8, 0x32},
                    {GGUF_U16, 0x7654},
                    {GGUF_I16, 0x7654},
                    {GGUF_U32, 0xFEDCBA98},
                    {GGUF_I32, (int32_t)0xFEDCBA98},
                    {GGUF_U64, 0x0102030405060708},
                    {GGUF_I64, 0x0102030405060708}};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        gguf_array array = {expected[i].kind, 2, (const uint8_t *)bits};
        assert_int_equal(gguf_array_int(&array, 1), expected[i].second);
    }
    assert_int_equal(gguf_array_int(&(gguf_array){GGUF_I8, 1, (const uint8_t *)bits}, 0), -127);
    assert_int_equal(gguf_array_int(&(gguf_array){GGUF_U64, 1, (const uint8_t *)bits}, 0), INT64_MAX);
    assert_int_equal(gguf_array_int(&(gguf_array){GGUF_BOOL, 1, (const uint8_t[]){1}}, 0), 1);
    double d = 0.125;
    assert_true(gguf_array_float(&(gguf_array){GGUF_F64, 1, (const uint8_t *)&d}, 0) == 0.125f);
}

static void many_names_are_found(void **state) {
    (void)state;
    enum { MANY = 1000 };
    char name[32];
    put_header(&w, 3, 0, MANY);
    for (uint32_t i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "key.%u", i);
        put_pair_u32(&w, name, i * 3);
    }
    gguf *file = accepted(&w);
    for (uint32_t i = 0; i < MANY; i++) {
        uint64_t value = 0;
        snprintf(name, sizeof name, "key.%u", i);
        assert_int_equal(gguf_get_uint(file, name, &value), RS_OK);
        assert_int_equal(value, i * 3);
        snprintf(name, sizeof name, "kex.%u", i);
        assert_false(gguf_has(file, name));
    }
    gguf_close(file);
}

static void empty_arrays_and_no_tensors(void **state) {
    (void)state;
    put_header(&w, 3, 0, 2);
    put_key(&w, "none", GGUF_ARRAY);
    put_u32(&w, GGUF_STRING);
    put_u64(&w, 0);
    put_key(&w, "zero", GGUF_ARRAY);
    put_u32(&w, GGUF_U64);
    put_u64(&w, 0);
    gguf *file = accepted(&w);
    gguf_array array = {.count = 9};
    assert_int_equal(gguf_get_array(file, "none", &array), RS_OK);
    assert_int_equal(array.count, 0);
    gguf_array_strings(&array, NULL);
    assert_int_equal(gguf_tensor_count(file), 0);
    assert_null(gguf_tensor_find(file, "any"));
    gguf_close(file);

    put_header(&w, 3, 0, 0);
    gguf_close(accepted(&w));
}

/* ---- What is refused ---- */

/* Every proper prefix is refused as too short for its counts or as cut short; nothing is read behind its end (under a
 * sanitizer). */
static void truncations(void **state) {
    (void)state;
    put_good(&w, 3);
    size_t full = w.bytes;
    for (size_t bytes = 0; bytes < full; bytes++) {
        w.bytes = bytes;
        refused(&w, RS_BAD_FORMAT, bytes >= 16 && bytes < 15 * 13 ? "the number of" : "cut short or damaged");
    }
}

/* Touches everything a reader of the file may touch. */
static uint64_t walk(const gguf *file) {
    uint64_t sum = 0;
    for (size_t i = 0; i < gguf_tensor_count(file); i++) {
        const gguf_tensor *t = gguf_tensor_at(file, i);
        assert_true(t->data >= gguf_data(file));
        assert_true(t->bytes <= (uint64_t)(gguf_data(file) + gguf_file_bytes(file) - t->data));
        sum += t->data[0] + t->data[t->bytes - 1];
    }
    gguf_array array;
    static str strings[FILE_MAX];
    if (gguf_has(file, "strings") && gguf_get_array(file, "strings", &array) == RS_OK && array.kind == GGUF_STRING) {
        gguf_array_strings(&array, strings);
        for (size_t i = 0; i < array.count; i++) {
            if (strings[i].bytes > 0) sum += (uint8_t)strings[i].data[strings[i].bytes - 1];
        }
    }
    return sum;
}

/* One flipped bit: accepted or refused with a sentence, and what is accepted stays inside the file. */
static void bit_flips(void **state) {
    (void)state;
    put_good(&w, 3);
    size_t n_accepted = 0, n_refused = 0;
    for (size_t bit = 0; bit < w.bytes * 8; bit++) {
        w.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        gguf *file = NULL;
        uint8_t *copy;
        if (parse_exact(w.data, w.bytes, &file, &copy) == RS_OK) {
            walk(file);
            gguf_close(file);
            n_accepted++;
        } else {
            assert_true(strlen(rs_last_error()) > 10);
            n_refused++;
        }
        free(copy);
        w.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_true(n_accepted >= 296 * 8); /* the tensor data at least */
    assert_true(n_refused > 1000);
}

static void random_damage(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (int round = 0; round < 20000; round++) {
        put_good(&w, 3);
        size_t header = w.bytes - 296;
        for (uint64_t n = 1 + random_next(&seed) % 4; n > 0; n--) {
            static const uint8_t extremes[] = {0x00, 0x01, 0x7F, 0x80, 0xFF};
            uint64_t r = random_next(&seed);
            w.data[r % header] = r >> 63 ? extremes[(r >> 32) % 5] : (uint8_t)(r >> 32);
        }
        gguf *file = NULL;
        if (gguf_parse(w.data, w.bytes, &file) == RS_OK) {
            walk(file);
            gguf_close(file);
        }
    }
}

static void versions_and_magic(void **state) {
    (void)state;
    static const uint32_t unknown[] = {0, 1, 4, 5, UINT32_MAX};
    char expected[64];
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        put_good(&w, unknown[i]);
        snprintf(expected, sizeof expected, "GGUF version %u; versions 2 and 3 are read", unknown[i]);
        refused(&w, RS_UNSUPPORTED, expected);
    }
    put_good(&w, 0x03000000); /* version 3 as a big-endian writer stores it */
    refused(&w, RS_UNSUPPORTED, "a big-endian GGUF file; only little-endian ones are read");
    put_good(&w, 3);
    memcpy(w.data, "FUGG", 4);
    refused(&w, RS_UNSUPPORTED, "a big-endian GGUF file; only little-endian ones are read");
    memcpy(w.data, "PK\x03\x04", 4);
    refused(&w, RS_BAD_FORMAT, "not a GGUF file: it begins with 50 4b 03 04");
}

static void huge_counts(void **state) {
    (void)state;
    static const uint64_t counts[] = {1000, 1u << 31, 1ull << 32, 1ull << 61, 1ull << 63, UINT64_MAX};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        put_header(&w, 3, counts[i], 0);
        refused(&w, RS_BAD_FORMAT, "the number of tensors is");
        put_header(&w, 3, 0, counts[i]);
        refused(&w, RS_BAD_FORMAT, "the number of metadata keys is");
        for (uint32_t kind = 0; kind < GGUF_KINDS; kind++) {
            if (kind == GGUF_ARRAY) continue;
            put_header(&w, 3, 0, 1);
            put_key(&w, "k", GGUF_ARRAY);
            put_u32(&w, kind);
            put_u64(&w, counts[i]);
            put_u64(&w, 0); /* one empty string */
            refused(&w, RS_BAD_FORMAT, "cut short or damaged: a metadata");
        }
        put_header(&w, 3, 0, 1);
        put_u64(&w, counts[i]); /* key length */
        for (int j = 0; j < 16; j++) put_u8(&w, 'k');
        refused(&w, RS_BAD_FORMAT, "cut short or damaged: a metadata key");
        put_header(&w, 3, 0, 1);
        put_key(&w, "k", GGUF_STRING);
        put_u64(&w, counts[i]);
        refused(&w, RS_BAD_FORMAT, "cut short or damaged: a metadata string");
    }
}

static void bad_metadata(void **state) {
    (void)state;
    put_header(&w, 3, 0, 1);
    put_key(&w, "", GGUF_U32);
    put_u64(&w, 0);
    refused(&w, RS_BAD_FORMAT, "a metadata key is 0 bytes long; 1 to 65535 are allowed");

    put_header(&w, 3, 0, 1);
    put_key(&w, "k", GGUF_KINDS);
    put_u32(&w, 0);
    refused(&w, RS_BAD_FORMAT, "key 'k' has metadata type 13; types are 0 to 12");

    put_header(&w, 3, 0, 1);
    put_key(&w, "k", GGUF_ARRAY);
    put_u32(&w, 99);
    put_u64(&w, 0);
    refused(&w, RS_BAD_FORMAT, "key 'k' has metadata type 99");

    put_header(&w, 3, 0, 1);
    put_key(&w, "k", GGUF_ARRAY);
    put_u32(&w, GGUF_ARRAY);
    put_u64(&w, 1);
    refused(&w, RS_UNSUPPORTED, "key 'k' is an array of arrays");

    put_header(&w, 3, 0, 2);
    put_pair_u32(&w, "twice", 1);
    put_pair_u32(&w, "twice", 1);
    refused(&w, RS_BAD_FORMAT, "key 'twice' appears twice");

    put_header(&w, 3, 0, 1);
    put_key(&w, "flag", GGUF_BOOL);
    put_u8(&w, 2);
    refused(&w, RS_BAD_FORMAT, "key 'flag' holds the bool 2, which is neither 0 nor 1");

    put_header(&w, 3, 0, 1);
    put_key(&w, "a\x1B[2J\n|\xFF", 77); /* an error must not drive the terminal */
    put_u32(&w, 0);
    refused(&w, RS_BAD_FORMAT, "key 'a?[2J?|?' has metadata type 77");
}

static void long_keys(void **state) {
    (void)state;
    static char key[65538];
    static writer big; /* FILE_MAX is just below two keys */
    memset(key, 'k', sizeof key - 1);
    key[65400] = 0;
    put_header(&big, 3, 0, 1);
    put_pair_u32(&big, key, 11);
    gguf *file = accepted(&big);
    uint64_t value = 0;
    assert_int_equal(gguf_get_uint(file, key, &value), RS_OK);
    assert_int_equal(value, 11);
    gguf_close(file);

    key[65400] = 'k';
    uint8_t *data = calloc(1, 1 << 17);
    memcpy(data, big.data, 24);
    memcpy(data + 24, &(uint64_t){65536}, 8);
    memset(data + 32, 'k', 65536);
    assert_int_equal(gguf_parse(data, 1 << 17, &file), RS_BAD_FORMAT);
    assert_non_null(strstr(rs_last_error(), "a metadata key is 65536 bytes long"));
    free(data);
}

static void bad_alignment(void **state) {
    (void)state;
    static const uint32_t bad[] = {0, 1, 4, 24, 33, 1 << 21, 1u << 31, UINT32_MAX};
    char expected[64];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_header(&w, 3, 0, 1);
        put_pair_u32(&w, "general.alignment", bad[i]);
        snprintf(expected, sizeof expected, "general.alignment is %u; it must be a power of two", bad[i]);
        refused(&w, RS_BAD_FORMAT, expected);
    }
    put_header(&w, 3, 0, 1);
    put_key(&w, "general.alignment", GGUF_STRING);
    put_str(&w, "32");
    refused(&w, RS_BAD_FORMAT, "'general.alignment' should be an integer and is of type string");
}

/* One tensor of 64 x 2 Q8_0 (136 bytes) with room for exactly that. */
static void put_one_tensor(uint32_t type, uint64_t cols, uint64_t rows, uint64_t offset) {
    put_header(&w, 3, 1, 0);
    put_tensor(&w, "t", type, cols, rows, offset);
    put_padding(&w, 32);
    for (int i = 0; i < 136; i++) put_u8(&w, 1);
}

static void tensor_bounds(void **state) {
    (void)state;
    put_one_tensor(FORMAT_Q8_0, 64, 2, 0);
    gguf *file = accepted(&w);
    walk(file);
    gguf_close(file);
    w.bytes--;
    refused(&w, RS_BAD_FORMAT, "tensor 't' needs 136 bytes at offset 0 of the tensor data, which has 135 bytes");
    put_one_tensor(FORMAT_Q8_0, 64, 2, 32);
    refused(&w, RS_BAD_FORMAT, "needs 136 bytes at offset 32");
    put_one_tensor(FORMAT_Q8_0, 64, 2, UINT64_MAX - 31);
    refused(&w, RS_BAD_FORMAT, "needs 136 bytes at offset 18446744073709551584");
    put_one_tensor(FORMAT_Q8_0, 64, 2, 8);
    refused(&w, RS_BAD_FORMAT, "tensor 't' lies at offset 8, no multiple of the alignment 32");
    put_one_tensor(FORMAT_Q8_0, 33, 2, 0);
    refused(&w, RS_BAD_FORMAT, "tensor 't' has rows of 33 values, no multiple of Q8_0's block of 32");
    put_one_tensor(FORMAT_Q8_0, 0, 2, 0);
    refused(&w, RS_BAD_FORMAT, "dimension 0 of size 0, which is empty");
    put_one_tensor(FORMAT_Q8_0, 64, 0, 0);
    refused(&w, RS_BAD_FORMAT, "dimension 1 of size 0, which is empty");
    put_one_tensor(FORMAT_Q8_0, 1ull << 32, 1ull << 32, 0);
    refused(&w, RS_BAD_FORMAT, "dimension 1 of size 4294967296, which is too large");
    put_one_tensor(FORMAT_F32, 1ull << 62, 1, 0); /* the values fit 64 bits, their bytes do not */
    refused(&w, RS_BAD_FORMAT, "tensor 't' needs 18446744073709551615 bytes");
    put_one_tensor(FORMAT_F32, 1ull << 61, 1, 0);
    refused(&w, RS_BAD_FORMAT, "tensor 't' needs 9223372036854775808 bytes");
}

static void bad_tensors(void **state) {
    (void)state;
    static const uint32_t unknown[] = {4, 5, 31, FORMAT_LIMIT, UINT32_MAX};
    char expected[64];
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        put_one_tensor(unknown[i], 64, 2, 0);
        snprintf(expected, sizeof expected, "tensor 't' has type number %u, which is not supported", unknown[i]);
        refused(&w, RS_UNSUPPORTED, expected);
    }
    static const uint32_t dims[] = {0, 5, UINT32_MAX};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        put_one_tensor(FORMAT_F32, 1, 1, 0);
        memcpy(w.data + 24 + 9, &dims[i], 4);
        snprintf(expected, sizeof expected, "tensor 't' has %u dimensions; 1 to 4 are allowed", dims[i]);
        refused(&w, RS_BAD_FORMAT, expected);
    }
    put_header(&w, 3, 1, 0);
    put_tensor(&w, "", FORMAT_F32, 1, 1, 0);
    refused(&w, RS_BAD_FORMAT, "a tensor name is 0 bytes long; 1 to 64 are allowed");
    put_header(&w, 3, 1, 0);
    put_tensor(&w, "12345678901234567890123456789012345678901234567890123456789012345", FORMAT_F32, 1, 1, 0);
    refused(&w, RS_BAD_FORMAT, "a tensor name is 65 bytes long");
    put_header(&w, 3, 2, 0);
    put_tensor(&w, "same", FORMAT_F32, 1, 1, 0);
    put_tensor(&w, "same", FORMAT_F32, 1, 1, 32);
    refused(&w, RS_BAD_FORMAT, "tensor 'same' appears twice");
}

/* ---- Real files ---- */

static void files_on_disk(void **state) {
    (void)state;
    gguf *file = NULL;
    assert_int_equal(gguf_open("/nonexistent/model.gguf", &file), RS_IO);
    assert_string_equal(rs_last_error(), "cannot open /nonexistent/model.gguf: No such file or directory");
    assert_int_equal(gguf_open("/tmp", &file), RS_IO);
    assert_string_equal(rs_last_error(), "/tmp is not a regular file");

    char path[] = "/tmp/test_gguf_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(gguf_open(path, &file), RS_BAD_FORMAT);
    assert_non_null(strstr(rs_last_error(), "the file is empty"));
    put_good(&w, 3);
    assert_int_equal(write(fd, w.data, w.bytes), w.bytes);
    assert_int_equal(gguf_open(path, &file), RS_OK);
    check_integers(file);
    check_others(file);
    check_tensors(file);
    gguf_close(file);
    assert_int_equal(ftruncate(fd, (off_t)w.bytes - 1), 0);
    file = NULL;
    assert_int_equal(gguf_open(path, &file), RS_BAD_FORMAT);
    assert_non_null(strstr(rs_last_error(), path));
    assert_null(file);
    close(fd);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_files),
        cmocka_unit_test(absent_keys_keep_the_default),
        cmocka_unit_test(wrong_kinds),
        cmocka_unit_test(array_items_of_each_kind),
        cmocka_unit_test(many_names_are_found),
        cmocka_unit_test(empty_arrays_and_no_tensors),
        cmocka_unit_test(truncations),
        cmocka_unit_test(bit_flips),
        cmocka_unit_test(random_damage),
        cmocka_unit_test(versions_and_magic),
        cmocka_unit_test(huge_counts),
        cmocka_unit_test(bad_metadata),
        cmocka_unit_test(long_keys),
        cmocka_unit_test(bad_alignment),
        cmocka_unit_test(tensor_bounds),
        cmocka_unit_test(bad_tensors),
        cmocka_unit_test(files_on_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
