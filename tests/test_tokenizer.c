/* test_tokenizer.c: laws of encoding and decoding on random vocabularies, and files that contradict themselves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/random.h"
#include "model/tokenizer.h"
#include "tests/tokenizer_file.h"

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER_DEFINED = 4, BYTE = 6 };

static const char *const families[] = {"llama-bpe", "dbrx",   "qwen2",  "qwen35",     "gpt-2",
                                       "smollm",    "tekken", "gpt-4o", "deepseek-v3"};
enum { FAMILIES = sizeof families / sizeof *families };

/* A tokenizer and the file it lives on. */
typedef struct fixture {
    tokenizer_file *file;
    gguf *gguf;
    tokenizer *t;
} fixture;

static rs_status fixture_open(fixture *x) {
    file_write(x->file);
    assert_int_equal(gguf_parse(x->file->bytes, x->file->used, &x->gguf), RS_OK);
    x->t = NULL;
    return tokenizer_open(x->gguf, &x->t);
}

static void fixture_close(fixture *x) {
    tokenizer_close(x->t);
    gguf_close(x->gguf);
    free(x->file->bytes);
    free(x->file);
}

static char arena[1 << 20];
static size_t arena_used;

static str keep(const char *text, size_t bytes) {
    assert_true(arena_used + bytes <= sizeof arena);
    char *copy = arena + arena_used;
    memcpy(copy, text, bytes);
    arena_used += bytes;
    return (str){copy, bytes};
}

static str join(str a, const char *between, str b) {
    char text[256];
    assert_true(a.bytes + b.bytes + 1 < sizeof text);
    return keep(text,
                (size_t)snprintf(text, sizeof text, "%.*s%s%.*s", (int)a.bytes, a.data, between, (int)b.bytes, b.data));
}

static bool has_token(const tokenizer_file *f, str text) {
    for (size_t i = 0; i < f->n_tokens; i++) {
        if (str_equal(f->tokens[i], text)) return true;
    }
    return false;
}

/* All bytes, `count` random merges, and some special tokens. */
static tokenizer_file *byte_level_file(const char *pre, size_t count, uint64_t seed) {
    tokenizer_file *f = calloc(1, sizeof *f);
    arena_used = 0;
    f->model = "gpt2";
    f->pre = pre;
    for (unsigned byte = 0; byte < 256; byte++) file_token(f, file_letter(byte), NORMAL, 0);
    static const unsigned common[] = {'a', 'b', 'c', ' ', '\n', '1', 0xC3, 0xA9, 0xE4};
    for (size_t tries = 0; tries < count; tries++) {
        size_t picks[2];
        for (int i = 0; i < 2; i++) {
            picks[i] = random_next(&seed) % 4 == 0 && f->n_tokens > 256 ? 256 + random_next(&seed) % (f->n_tokens - 256)
                                                                        : common[random_next(&seed) % 9];
        }
        if (f->tokens[picks[0]].bytes + f->tokens[picks[1]].bytes > 60) continue;
        str joined = join(f->tokens[picks[0]], "", f->tokens[picks[1]]);
        file_merge(f, join(f->tokens[picks[0]], " ", f->tokens[picks[1]]));
        if (!has_token(f, joined)) file_token(f, joined, NORMAL, 0);
    }
    file_token(f, str_of("<s>"), CONTROL, 0);
    file_token(f, str_of("<|im_end|>"), NORMAL, 0);
    file_token(f, str_of("<<"), USER_DEFINED, 0);
    file_token(f, str_of("<<<<<"), USER_DEFINED, 0);
    f->n_scores = 0;
    return f;
}

/* Pieces of a, b, c, U+2581 and é, with all bytes when `fallback`. */
static tokenizer_file *pieces_file(bool fallback, size_t count, uint64_t seed) {
    tokenizer_file *f = calloc(1, sizeof *f);
    arena_used = 0;
    f->model = "llama";
    file_token(f, str_of("<unk>"), UNKNOWN, 0);
    file_token(f, str_of("<s>"), CONTROL, 0);
    file_token(f, str_of("</s>"), CONTROL, 0);
    for (unsigned byte = 0; fallback && byte < 256; byte++) {
        char name[8];
        file_token(f, keep(name, (size_t)snprintf(name, sizeof name, "<0x%02X>", byte)), BYTE, 0);
    }
    static const char *const characters[] = {"a", "b", "c", "\xE2\x96\x81", "\xC3\xA9"};
    size_t first = f->n_tokens;
    for (int i = 0; i < 5; i++) file_token(f, str_of(characters[i]), NORMAL, -1000);
    for (size_t tries = 0; tries < count; tries++) {
        str left = f->tokens[first + random_next(&seed) % (f->n_tokens - first)];
        str right = f->tokens[first + random_next(&seed) % 5];
        if (left.bytes + right.bytes > 30) continue;
        str joined = join(left, "", right);
        /* Few different scores, so that equals are decided by place. */
        if (!has_token(f, joined)) file_token(f, joined, NORMAL, (float)(random_next(&seed) % 8) - 4);
    }
    return f;
}

/* Text of the fixtures' alphabet, other characters and stray bytes. */
static size_t random_text(char *text, size_t size, uint64_t *seed) {
    static const char *const parts[] = {"a",
                                        "b",
                                        "c",
                                        "a",
                                        "b",
                                        "c",
                                        " ",
                                        " ",
                                        "\n",
                                        "1",
                                        "\xC3\xA9",
                                        "\xE4\xBD\xA0",
                                        "<",
                                        "<s>",
                                        "\xF0\x9F\x98\x80",
                                        "\xE2\x96\x81",
                                        "\xC3",
                                        "\x80",
                                        "\xFF",
                                        "\xE4\xBD",
                                        "'s",
                                        "A",
                                        "_",
                                        "<|im_end|>"};
    size_t bytes = 0, count = random_next(seed) % 40;
    for (size_t i = 0; i < count; i++) {
        const char *part = parts[random_next(seed) % (sizeof parts / sizeof *parts)];
        size_t times = random_next(seed) % 16 == 0 ? 20 : 1;
        for (; times > 0 && bytes + strlen(part) <= size; times--) {
            memcpy(text + bytes, part, strlen(part));
            bytes += strlen(part);
        }
    }
    return bytes;
}

/* ---- Laws ----------------------------------------------------------------------------------------------------- */

static void pieces_of_tokens_are_the_text(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (int family = 0; family < FAMILIES; family++) {
        fixture x = {byte_level_file(families[family], 300, seed)};
        assert_int_equal(fixture_open(&x), RS_OK);
        for (int round = 0; round < 300; round++) {
            /* Every other text is long and of many words, so that the memory of words must tell them apart. */
            char text[4000], back[4000];
            int32_t tokens[4000];
            size_t bytes = 0, count, n = 0;
            do bytes += random_text(text + bytes, sizeof text - bytes, &seed);
            while (round % 2 && bytes < sizeof text - 200);
            unsigned flags = random_next(&seed) & RS_TOKENS_PARSE_SPECIAL;
            assert_int_equal(tokenizer_encode(x.t, text, bytes, flags, tokens, 4000, &count), RS_OK);
            for (size_t i = 0; i < count; i++) {
                str piece = tokenizer_piece(x.t, tokens[i]);
                memcpy(back + n, piece.data, piece.bytes);
                n += piece.bytes;
            }
            assert_int_equal(n, bytes);
            assert_memory_equal(back, text, n);
        }
        fixture_close(&x);
    }
}

/* Bytes as characters, U+FFFD for each longest run that begins one and breaks off: written for clarity. */
static size_t replaced(const char *text, size_t bytes, char *out) {
    size_t n = 0;
    for (size_t at = 0; at < bytes;) {
        int32_t code_point;
        size_t length = utf8_decode(text + at, bytes - at, &code_point);
        if (code_point < 0) {
            for (size_t more = 3; more > 1; more--) {
                if (at + more <= bytes && utf8_is_partial(text + at, more)) {
                    length = more;
                    break;
                }
            }
            code_point = 0xFFFD;
        }
        n += utf8_encode((uint32_t)code_point, out + n);
        at += length;
    }
    return n;
}

static void assert_valid(const char *text, size_t bytes) {
    for (size_t at = 0; at < bytes;) {
        int32_t code_point;
        at += utf8_decode(text + at, bytes - at, &code_point);
        assert_true(code_point >= 0);
    }
}

static void streams_are_whole_characters_and_equal_the_whole(void **state) {
    (void)state;
    uint64_t seed = 2;
    for (int kind = 0; kind < 2; kind++) {
        fixture x = {kind == 0 ? byte_level_file("qwen2", 300, 3) : pieces_file(true, 100, 3)};
        if (kind == 1) file_value(x.file, "tokenizer.ggml.add_space_prefix", GGUF_BOOL, 0);
        assert_int_equal(fixture_open(&x), RS_OK);
        for (int round = 0; round < 2000; round++) {
            static char bytes[20000], expected[60000], got[60000];
            size_t n = 0, used = 0, chunk;
            rs_text stream = {0};
            for (size_t i = random_next(&seed) % 50; i > 0; i--) {
                int32_t token = (int32_t)(random_next(&seed) % tokenizer_vocab(x.t));
                str piece = tokenizer_piece(x.t, token);
                memcpy(bytes + n, piece.data, piece.bytes);
                n += piece.bytes;
                rs_text before = stream;
                rs_status status = tokenizer_decode(x.t, &stream, token, true, got + used, 2, &chunk);
                if (status == RS_LIMIT) { /* nothing is consumed */
                    assert_memory_equal(&before, &stream, sizeof stream);
                    status = tokenizer_decode(x.t, &stream, token, true, got + used, sizeof got - used, &chunk);
                }
                assert_int_equal(status, RS_OK);
                assert_valid(got + used, chunk);
                used += chunk;
            }
            assert_int_equal(tokenizer_decode(x.t, &stream, -1, true, got + used, 16, &chunk), RS_OK);
            assert_int_equal(stream.n_held, 0);
            assert_int_equal(used + chunk, replaced(bytes, n, expected));
            assert_memory_equal(got, expected, used + chunk);
        }
        fixture_close(&x);
    }
}

/* The textbook: again and again the best neighbours, the left one of equals; O(n^3) and by text alone. */
static size_t merge_naively(const tokenizer_file *f, const char *text, size_t bytes, bool spm, int32_t *tokens) {
    str parts[400];
    size_t n = 0, count = 0;
    for (size_t at = 0; at < bytes;) {
        int32_t unused;
        size_t length = utf8_decode(text + at, bytes - at, &unused);
        parts[n++] = (str){text + at, length};
        at += length;
    }
    for (;;) {
        size_t best = SIZE_MAX;
        float best_rank = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            size_t both = parts[i].bytes + parts[i + 1].bytes;
            for (size_t k = 0; k < (spm ? f->n_tokens : f->n_merges); k++) {
                float rank = spm ? -f->scores[k] : (float)k;
                bool same;
                if (spm) {
                    same = f->kinds[k] == NORMAL && str_equal(f->tokens[k], (str){parts[i].data, both});
                } else {
                    const str *m = &f->merges[k];
                    same = m->bytes == both + 1 && m->data[parts[i].bytes] == ' ' &&
                           memcmp(m->data, parts[i].data, parts[i].bytes) == 0 &&
                           memcmp(m->data + parts[i].bytes + 1, parts[i + 1].data, parts[i + 1].bytes) == 0;
                }
                if (same && (best == SIZE_MAX || rank < best_rank)) {
                    best = i;
                    best_rank = rank;
                }
            }
        }
        if (best == SIZE_MAX) break;
        parts[best].bytes += parts[best + 1].bytes;
        memmove(&parts[best + 1], &parts[best + 2], (--n - best - 1) * sizeof *parts);
    }
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < f->n_tokens; k++) {
            if (f->kinds[k] == NORMAL && str_equal(f->tokens[k], parts[i])) tokens[count++] = (int32_t)k;
        }
    }
    return count;
}

static void merging_follows_the_textbook(void **state) {
    (void)state;
    uint64_t seed = 5;
    static const char *const spm_parts[] = {"a", "b", "c", "\xE2\x96\x81", "\xC3\xA9"};
    for (int round = 0; round < 60; round++) {
        bool spm = round % 2;
        fixture x = {spm ? pieces_file(true, 60, seed) : byte_level_file("gpt-2", 120, seed)};
        if (spm) file_value(x.file, "tokenizer.ggml.add_space_prefix", GGUF_BOOL, 0);
        assert_int_equal(fixture_open(&x), RS_OK);
        for (int i = 0; i < 40; i++) {
            char text[200];
            int32_t got[200], expected[200];
            size_t bytes = 0, count;
            for (size_t left = random_next(&seed) % 60; left > 0; left--) {
                const char *part =
                    spm_parts[random_next(&seed) % (spm ? 5 : 3)]; /* letters alone are one word of GPT-2's */
                memcpy(text + bytes, part, strlen(part));
                bytes += strlen(part);
            }
            assert_int_equal(tokenizer_encode(x.t, text, bytes, 0, got, 200, &count), RS_OK);
            assert_int_equal(count, merge_naively(x.file, text, bytes, spm, expected));
            assert_memory_equal(got, expected, count * sizeof *got);
        }
        fixture_close(&x);
    }
}

/* A long text goes through the memory of words, a line alone does not. No merge joins the "\1" at the end of a line. */
static void a_long_text_is_its_lines(void **state) {
    (void)state;
    uint64_t seed = 6;
    enum { COPIES = 100, LINE = 120 };
    for (int kind = 0; kind < 2; kind++) {
        fixture x = {kind == 0 ? byte_level_file("gpt-2", 300, 3) : pieces_file(true, 100, 3)};
        file_value(x.file, "tokenizer.ggml.add_space_prefix", GGUF_BOOL, 0);
        assert_int_equal(fixture_open(&x), RS_OK);
        for (int round = 0; round < 100; round++) {
            char text[COPIES * LINE];
            int32_t once[LINE], tokens[COPIES * LINE];
            size_t bytes = random_text(text, LINE - 2, &seed), n_once, count;
            text[bytes++] = '\1';
            for (size_t i = 1; i < COPIES; i++) memcpy(text + i * bytes, text, bytes);
            assert_int_equal(tokenizer_encode(x.t, text, bytes, 0, once, LINE, &n_once), RS_OK);
            assert_int_equal(tokenizer_encode(x.t, text, COPIES * bytes, 0, tokens, COPIES * LINE, &count), RS_OK);
            assert_int_equal(count, COPIES * n_once);
            for (size_t i = 0; i < COPIES; i++) assert_memory_equal(tokens + i * n_once, once, n_once * sizeof *once);
            assert_int_equal(tokenizer_encode(x.t, text, COPIES * bytes, 0, tokens, n_once, &count), RS_LIMIT);
            assert_int_equal(count, COPIES * n_once);
        }
        fixture_close(&x);
    }
}

static void too_small_a_buffer_gives_the_full_count(void **state) {
    (void)state;
    fixture x = {byte_level_file("gpt-2", 0, 1)};
    assert_int_equal(fixture_open(&x), RS_OK);
    int32_t tokens[8] = {[2] = -7};
    size_t count;
    assert_int_equal(tokenizer_encode(x.t, "hello", 5, 0, tokens, 2, &count), RS_LIMIT);
    assert_int_equal(count, 5);
    assert_int_equal(tokens[0], 'h');
    assert_int_equal(tokens[1], 'e');
    assert_int_equal(tokens[2], -7);
    assert_int_equal(tokenizer_encode(x.t, "hello", 5, 0, NULL, 0, &count), RS_LIMIT);
    assert_int_equal(tokenizer_encode(x.t, "", 0, 0, NULL, 0, &count), RS_OK);
    assert_int_equal(count, 0);
    fixture_close(&x);
}

static void long_runs_take_linear_time(void **state) {
    (void)state;
    size_t bytes = 1 << 20;
    char *text = malloc(bytes);
    int32_t *tokens = malloc((bytes + 1) * sizeof *tokens);
    static const char runs[] = {'a', ' ', '\n', 'A', '1', '<', '\'', '\t', (char)0x80, '-', (char)0xE4};
    for (int family = 0; family <= FAMILIES; family++) {
        fixture x = {family < FAMILIES ? byte_level_file(families[family], 300, 3) : pieces_file(true, 100, 3)};
        assert_int_equal(fixture_open(&x), RS_OK);
        for (size_t i = 0; i < sizeof runs; i++) {
            memset(text, runs[i], bytes);
            if (i % 2) text[bytes - 1] = 'x';
            size_t count;
            clock_t begin = clock();
            assert_int_equal(tokenizer_encode(x.t, text, bytes, 0, tokens, bytes + 1, &count), RS_OK);
            double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
            if (seconds > 10) fail_msg("1 MiB of byte %d took %.1f s with family %d", runs[i], seconds, family);
        }
        fixture_close(&x);
    }
    free(tokens);
    free(text);
}

/* ---- Examples ------------------------------------------------------------------------------------------------- */

static void encodes(const fixture *x, const char *text, unsigned flags, const char *expected) {
    int32_t tokens[64];
    size_t count, n = 0;
    char got[512] = "";
    assert_int_equal(tokenizer_encode(x->t, text, strlen(text), flags, tokens, 64, &count), RS_OK);
    for (size_t i = 0; i < count; i++) {
        str piece = tokenizer_piece(x->t, tokens[i]);
        n += (size_t)snprintf(got + n, sizeof got - n, "%s%.*s", i == 0 ? "" : "|", (int)piece.bytes, piece.data);
    }
    assert_string_equal(got, expected);
}

static void special_tokens_are_leftmost_and_longest(void **state) {
    (void)state;
    fixture x = {byte_level_file("gpt-2", 0, 1)};
    file_value(x.file, "tokenizer.ggml.bos_token_id", GGUF_U32, 256);
    file_value(x.file, "tokenizer.ggml.add_bos_token", GGUF_BOOL, 1);
    assert_int_equal(fixture_open(&x), RS_OK);
    encodes(&x, "<<<a", 0, "<<|<|a");
    encodes(&x, "<<<<<<<", 0, "<<<<<|<<");
    encodes(&x, "<s>", 0, "<|s|>");
    encodes(&x, "a<s><|im_end|>", RS_TOKENS_PARSE_SPECIAL, "a|<s>|<|im_end|>");
    encodes(&x, "<|im_end|", RS_TOKENS_PARSE_SPECIAL, "<|||i|m|_|e|n|d||");
    encodes(&x, "a", RS_TOKENS_ADD_SPECIAL, "<s>|a");
    assert_false(tokenizer_ends(x.t, 256));
    assert_true(tokenizer_ends(x.t, 257)); /* by its name, though of kind NORMAL */
    assert_false(tokenizer_ends(x.t, -1) || tokenizer_ends(x.t, 1 << 30));
    assert_true(tokenizer_heap_bytes(x.t) > 260 * sizeof(int32_t));
    char out[16];
    size_t bytes;
    rs_text stream = {0};
    assert_int_equal(tokenizer_decode(x.t, &stream, 256, false, out, 16, &bytes), RS_OK);
    assert_int_equal(bytes, 0);
    assert_int_equal(tokenizer_decode(x.t, &stream, 256, true, out, 16, &bytes), RS_OK);
    assert_memory_equal(out, "<s>", 3);
    assert_int_equal(tokenizer_decode(x.t, &stream, 260, true, out, 16, &bytes), RS_BAD_ARGUMENT);
    assert_int_equal(tokenizer_decode(x.t, &stream, -2, true, out, 16, &bytes), RS_BAD_ARGUMENT);
    fixture_close(&x);
}

static void sentencepiece_adds_and_drops_one_space(void **state) {
    (void)state;
    fixture x = {pieces_file(true, 0, 1)};
    assert_int_equal(fixture_open(&x), RS_OK);
    encodes(&x, "ab a", RS_TOKENS_ADD_SPECIAL, "<s>| |a|b| |a");
    encodes(&x, " a", 0, " | |a");
    encodes(&x, "a<s>b", RS_TOKENS_PARSE_SPECIAL, " |a|<s>| |b");
    encodes(&x, "", 0, "");
    encodes(&x, "\xE2\x96\x81", 0, " | ");
    encodes(&x, "z\xFF", 0, " |z|\xFF");
    int32_t tokens[8];
    size_t count, bytes, used = 0;
    char out[32];
    rs_text stream = {0};
    assert_int_equal(tokenizer_encode(x.t, " a", 2, RS_TOKENS_ADD_SPECIAL, tokens, 8, &count), RS_OK);
    for (size_t i = 0; i < count; i++, used += bytes) {
        assert_int_equal(tokenizer_decode(x.t, &stream, tokens[i], false, out + used, sizeof out - used, &bytes),
                         RS_OK);
    }
    assert_int_equal(used, 2);
    assert_memory_equal(out, " a", 2);
    fixture_close(&x);

    x = (fixture){pieces_file(false, 0, 1)};
    assert_int_equal(fixture_open(&x), RS_OK);
    encodes(&x, "xyza", 0, " |<unk>|a"); /* one for a run of them */
    fixture_close(&x);
}

/* ---- Files that contradict themselves -------------------------------------------------------------------------- */

typedef void (*damage)(tokenizer_file *f);

static void no_model(tokenizer_file *f) {
    f->model = NULL;
}
static void other_model(tokenizer_file *f) {
    f->model = "bert";
}
static void other_pre(tokenizer_file *f) {
    f->pre = "gpt";
}
static void spaced_pre(tokenizer_file *f) {
    f->pre = "gpt-2 mpt";
}
static void empty_pre(tokenizer_file *f) {
    f->pre = "";
}
static void no_tokens(tokenizer_file *f) {
    f->n_tokens = 0;
}
static void few_kinds(tokenizer_file *f) {
    f->n_kinds--;
}
static void few_scores(tokenizer_file *f) {
    f->n_scores--;
}
static void no_scores(tokenizer_file *f) {
    f->n_scores = 0;
}
static void bad_score(tokenizer_file *f) {
    f->scores[3] = 0.0f / 0.0f;
}
static void same_tokens(tokenizer_file *f) {
    f->tokens[300] = f->tokens[301];
}
static void bad_byte(tokenizer_file *f) {
    f->tokens[5] = str_of("<0x1G>"), f->kinds[5] = BYTE;
}
static void same_byte(tokenizer_file *f) {
    f->tokens[5] = f->tokens[6] = str_of("<0x41>"), f->kinds[5] = f->kinds[6] = BYTE;
}
static void no_merge(tokenizer_file *f) {
    f->merges[0] = str_of("ab");
}
static void half_merge(tokenizer_file *f) {
    f->merges[0] = str_of("a ");
}
static void strange_merge(tokenizer_file *f) {
    f->merges[0] = str_of("a \xE6\x97\xA5");
}
static void lost_merge(tokenizer_file *f) {
    f->merges[0] = str_of("z y");
}
static void bad_bos(tokenizer_file *f) {
    file_value(f, "tokenizer.ggml.bos_token_id", GGUF_U32, 100000);
}
static void bad_eot(tokenizer_file *f) {
    file_value(f, "tokenizer.ggml.eot_token_id", GGUF_U32, (uint32_t)f->n_tokens);
}
static void bool_bos(tokenizer_file *f) {
    file_value(f, "tokenizer.ggml.bos_token_id", GGUF_BOOL, 1);
}
static void long_token(tokenizer_file *f) {
    static char text[1025];
    memset(text, 'q', sizeof text);
    f->tokens[9] = (str){text, sizeof text};
}
static void empty_token(tokenizer_file *f) {
    f->tokens[f->n_tokens - 1] = f->tokens[f->n_tokens - 2] = (str){"", 0};
}
static void strange_kind(tokenizer_file *f) {
    f->kinds[9] = 77;
}
static void no_kinds(tokenizer_file *f) {
    f->n_kinds = 0;
}
static void no_bos(tokenizer_file *f) {
    file_value(f, "tokenizer.ggml.bos_token_id", GGUF_U32, UINT32_MAX);
}

static void contradictions_are_refused(void **state) {
    (void)state;
    static const struct {
        damage damage;
        bool pieces;
        rs_status expected;
    } cases[] = {
        {no_model, false, RS_BAD_FORMAT},
        {other_model, false, RS_UNSUPPORTED},
        {other_pre, false, RS_UNSUPPORTED},
        {spaced_pre, false, RS_UNSUPPORTED},
        {empty_pre, false, RS_UNSUPPORTED},
        {no_tokens, false, RS_BAD_FORMAT},
        {few_kinds, false, RS_BAD_FORMAT},
        {few_scores, true, RS_BAD_FORMAT},
        {no_scores, true, RS_BAD_FORMAT},
        {bad_score, true, RS_BAD_FORMAT},
        {same_tokens, false, RS_BAD_FORMAT},
        {same_tokens, true, RS_BAD_FORMAT},
        {bad_byte, true, RS_BAD_FORMAT},
        {same_byte, true, RS_BAD_FORMAT},
        {no_merge, false, RS_BAD_FORMAT},
        {half_merge, false, RS_BAD_FORMAT},
        {strange_merge, false, RS_BAD_FORMAT},
        {lost_merge, false, RS_BAD_FORMAT},
        {bad_bos, false, RS_BAD_FORMAT},
        {bad_bos, true, RS_BAD_FORMAT},
        {bad_eot, true, RS_BAD_FORMAT},
        {bool_bos, true, RS_BAD_FORMAT},
        {long_token, true, RS_BAD_FORMAT},
        {long_token, false, RS_BAD_FORMAT},
        {empty_token, false, RS_OK},
        {strange_kind, true, RS_OK},
        {no_kinds, false, RS_OK},
        {no_bos, true, RS_OK},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fixture x = {cases[i].pieces ? pieces_file(true, 200, 1) : byte_level_file("gpt-2", 200, 1)};
        cases[i].damage(x.file);
        rs_status status = fixture_open(&x);
        if (status != cases[i].expected) fail_msg("case %zu: %s (%s)", i, rs_status_name(status), rs_last_error());
        if (status != RS_OK) assert_true(strlen(rs_last_error()) > 10);
        fixture_close(&x);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_of_tokens_are_the_text),
        cmocka_unit_test(streams_are_whole_characters_and_equal_the_whole),
        cmocka_unit_test(merging_follows_the_textbook),
        cmocka_unit_test(a_long_text_is_its_lines),
        cmocka_unit_test(too_small_a_buffer_gives_the_full_count),
        cmocka_unit_test(long_runs_take_linear_time),
        cmocka_unit_test(special_tokens_are_leftmost_and_longest),
        cmocka_unit_test(sentencepiece_adds_and_drops_one_space),
        cmocka_unit_test(contradictions_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
