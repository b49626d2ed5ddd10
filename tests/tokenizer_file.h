/* tokenizer_file.h: builds GGUF files that are nothing but a tokenizer, in memory, for tests and fuzzing. */
#ifndef RS_TESTS_TOKENIZER_FILE_H
#define RS_TESTS_TOKENIZER_FILE_H

#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "model/gguf.h"

enum { FILE_TOKENS_MAX = 4096 };

/* Tokens, merges and metadata collected so far; zero-initialise. Strings are the caller's, who keeps them. */
typedef struct tokenizer_file {
    str tokens[FILE_TOKENS_MAX], merges[FILE_TOKENS_MAX];
    int32_t kinds[FILE_TOKENS_MAX];
    float scores[FILE_TOKENS_MAX];
    size_t n_tokens, n_merges, n_kinds, n_scores; /* the counts written; kinds and scores 0: left out */
    const char *model, *pre;                      /* NULL: left out */
    struct {
        const char *key;
        uint32_t value;
        gguf_kind kind; /* GGUF_U32 or GGUF_BOOL */
    } values[16];
    size_t n_values;
    uint8_t *bytes; /* the file, after file_write; free it */
    size_t used, size;
} tokenizer_file;

static inline void file_put(tokenizer_file *f, const void *data, size_t n) {
    if (f->used + n > f->size) {
        f->size = 2 * (f->used + n);
        f->bytes = realloc(f->bytes, f->size);
        if (f->bytes == NULL) abort();
    }
    if (n > 0) memcpy(f->bytes + f->used, data, n);
    f->used += n;
}

static inline void file_put_u32(tokenizer_file *f, uint32_t value) {
    file_put(f, &value, sizeof value);
}

static inline void file_put_u64(tokenizer_file *f, uint64_t value) {
    file_put(f, &value, sizeof value);
}

static inline void file_put_str(tokenizer_file *f, str s) {
    file_put_u64(f, s.bytes);
    file_put(f, s.data, s.bytes);
}

static inline void file_put_key(tokenizer_file *f, const char *key, gguf_kind kind) {
    file_put_str(f, str_of(key));
    file_put_u32(f, kind);
}

static inline void file_put_array(tokenizer_file *f, const char *key, gguf_kind kind, size_t count) {
    file_put_key(f, key, GGUF_ARRAY);
    file_put_u32(f, kind);
    file_put_u64(f, count);
}

static inline void file_token(tokenizer_file *f, str text, int32_t kind, float score) {
    if (f->n_tokens == FILE_TOKENS_MAX) abort();
    f->tokens[f->n_tokens] = text;
    f->kinds[f->n_tokens] = kind;
    f->scores[f->n_tokens++] = score;
    f->n_kinds = f->n_scores = f->n_tokens;
}

static inline void file_merge(tokenizer_file *f, str text) {
    if (f->n_merges == FILE_TOKENS_MAX) abort();
    f->merges[f->n_merges++] = text;
}

static inline void file_value(tokenizer_file *f, const char *key, gguf_kind kind, uint32_t value) {
    f->values[f->n_values].key = key;
    f->values[f->n_values].kind = kind;
    f->values[f->n_values++].value = value;
}

static inline void file_write(tokenizer_file *f) {
    f->used = 0;
    bool merges = f->model != NULL && strcmp(f->model, "gpt2") == 0;
    file_put(f, "GGUF", 4);
    file_put_u32(f, 3);
    file_put_u64(f, 0);
    file_put_u64(f, (f->model != NULL) + (f->pre != NULL) + 1 + merges + (f->n_kinds > 0) + (f->n_scores > 0) +
                        f->n_values);
    if (f->model != NULL) {
        file_put_key(f, "tokenizer.ggml.model", GGUF_STRING);
        file_put_str(f, str_of(f->model));
    }
    if (f->pre != NULL) {
        file_put_key(f, "tokenizer.ggml.pre", GGUF_STRING);
        file_put_str(f, str_of(f->pre));
    }
    file_put_array(f, "tokenizer.ggml.tokens", GGUF_STRING, f->n_tokens);
    for (size_t i = 0; i < f->n_tokens; i++) file_put_str(f, f->tokens[i]);
    if (merges) file_put_array(f, "tokenizer.ggml.merges", GGUF_STRING, f->n_merges);
    for (size_t i = 0; merges && i < f->n_merges; i++) file_put_str(f, f->merges[i]);
    if (f->n_kinds > 0) file_put_array(f, "tokenizer.ggml.token_type", GGUF_I32, f->n_kinds);
    file_put(f, f->kinds, f->n_kinds * sizeof *f->kinds);
    if (f->n_scores > 0) file_put_array(f, "tokenizer.ggml.scores", GGUF_F32, f->n_scores);
    file_put(f, f->scores, f->n_scores * sizeof *f->scores);
    for (size_t i = 0; i < f->n_values; i++) {
        file_put_key(f, f->values[i].key, f->values[i].kind);
        file_put(f, &f->values[i].value, f->values[i].kind == GGUF_BOOL ? 1 : 4);
    }
    uint8_t padding[64] = {0};
    file_put(f, padding, (64 - f->used % 64) % 64);
}

/* The letter of GPT-2's alphabet for a byte, at letters[byte]. */
static inline str file_letter(unsigned byte) {
    static char letters[256][2];
    unsigned letter = byte, left = 0;
    for (unsigned b = 0; b <= byte; b++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        letter = printable ? b : 256 + left++;
    }
    return (str){letters[byte], utf8_encode(letter, letters[byte])};
}

#endif
