/* tiny_gguf.h: writes small random F32 models of the families llama and gemma3, so that C tests, and with them the
 * sanitizers, reach the engine without Python. */
#ifndef RS_TESTS_TINY_GGUF_H
#define RS_TESTS_TINY_GGUF_H

#include <math.h>
#include <stdio.h>

#include "base/random.h"
#include "tests/tokenizer_file.h"

enum { TINY_LETTERS = 256, TINY_TENSORS_MAX = 128, TINY_ALIGNMENT = 32 };

typedef struct tiny_shape {
    const char *family;
    uint32_t dim, heads, kv_heads, head_dim, ffn_dim, layers, vocab, context;
    uint32_t window; /* 0: none, and no norms after the blocks */
} tiny_shape;

/* rows 0: a vector of norm weights near 1. */
typedef struct tiny_tensor {
    char name[48];
    uint32_t rows, cols;
} tiny_tensor;

typedef struct tiny_list {
    tiny_tensor tensors[TINY_TENSORS_MAX];
    size_t count;
} tiny_list;

static inline void tiny_add(tiny_list *l, const char *prefix, const char *name, uint32_t rows, uint32_t cols) {
    if (l->count == TINY_TENSORS_MAX) abort();
    tiny_tensor *t = &l->tensors[l->count++];
    *t = (tiny_tensor){.rows = rows, .cols = cols};
    snprintf(t->name, sizeof t->name, "%s%s.weight", prefix, name);
}

static inline void tiny_list_tensors(tiny_list *l, const tiny_shape *s) {
    uint32_t q_dim = s->heads * s->head_dim, kv_dim = s->kv_heads * s->head_dim;
    tiny_add(l, "", "token_embd", s->vocab, s->dim);
    tiny_add(l, "", "output_norm", 0, s->dim);
    for (uint32_t i = 0; i < s->layers; i++) {
        char block[16];
        snprintf(block, sizeof block, "blk.%u.", i);
        tiny_add(l, block, "attn_norm", 0, s->dim);
        tiny_add(l, block, "attn_q", q_dim, s->dim);
        tiny_add(l, block, "attn_k", kv_dim, s->dim);
        tiny_add(l, block, "attn_v", kv_dim, s->dim);
        tiny_add(l, block, "attn_output", s->dim, q_dim);
        tiny_add(l, block, "ffn_norm", 0, s->dim);
        tiny_add(l, block, "ffn_gate", s->ffn_dim, s->dim);
        tiny_add(l, block, "ffn_up", s->ffn_dim, s->dim);
        tiny_add(l, block, "ffn_down", s->dim, s->ffn_dim);
        if (s->window == 0) continue;
        tiny_add(l, block, "attn_q_norm", 0, s->head_dim);
        tiny_add(l, block, "attn_k_norm", 0, s->head_dim);
        tiny_add(l, block, "post_attention_norm", 0, s->dim);
        tiny_add(l, block, "post_ffw_norm", 0, s->dim);
    }
}

static inline size_t tiny_values(const tiny_tensor *t) {
    return (size_t)(t->rows > 0 ? t->rows : 1) * t->cols;
}

static inline void tiny_pad(tokenizer_file *f) {
    while (f->used % TINY_ALIGNMENT != 0) file_put(f, "", 1);
}

static inline void tiny_put_u32(tokenizer_file *f, const tiny_shape *s, const char *suffix, uint32_t value) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", s->family, suffix);
    file_put_key(f, key, GGUF_U32);
    file_put_u32(f, value);
}

/* The bytes' letters, then tokens of two letters that no merge makes. */
static inline void tiny_put_tokens(tokenizer_file *f, const tiny_shape *s) {
    file_put_array(f, "tokenizer.ggml.tokens", GGUF_STRING, s->vocab);
    for (uint32_t i = 0; i < s->vocab; i++) {
        char pair[2] = {(char)('a' + i % 26), (char)('A' + i / 26 % 26)};
        file_put_str(f, i < TINY_LETTERS ? file_letter(i) : (str){pair, 2});
    }
    file_put_array(f, "tokenizer.ggml.merges", GGUF_STRING, 0);
}

static inline void tiny_put_metadata(tokenizer_file *f, const tiny_shape *s, uint64_t tensors) {
    enum { PAIRS = 13 };
    file_put(f, "GGUF", 4);
    file_put_u32(f, 3);
    file_put_u64(f, tensors);
    file_put_u64(f, PAIRS + (s->window > 0));
    file_put_key(f, "general.architecture", GGUF_STRING);
    file_put_str(f, str_of(s->family));
    tiny_put_u32(f, s, "context_length", s->context);
    tiny_put_u32(f, s, "embedding_length", s->dim);
    tiny_put_u32(f, s, "block_count", s->layers);
    tiny_put_u32(f, s, "feed_forward_length", s->ffn_dim);
    tiny_put_u32(f, s, "attention.head_count", s->heads);
    tiny_put_u32(f, s, "attention.head_count_kv", s->kv_heads);
    tiny_put_u32(f, s, "attention.key_length", s->head_dim);
    tiny_put_u32(f, s, "attention.value_length", s->head_dim);
    if (s->window > 0) tiny_put_u32(f, s, "attention.sliding_window", s->window);
    file_put_key(f, "tokenizer.ggml.model", GGUF_STRING);
    file_put_str(f, str_of("gpt2"));
    file_put_key(f, "tokenizer.ggml.pre", GGUF_STRING);
    file_put_str(f, str_of("gpt-2"));
    tiny_put_tokens(f, s);
}

/* Uniform values whose products keep the size of what they multiply; norms in 0.7 to 1.3. */
static inline void tiny_put_values(tokenizer_file *f, const tiny_tensor *t, uint64_t *state) {
    float scale = t->rows > 0 ? 1.5f * sqrtf(12.0f / (float)t->cols) : 0.6f, centre = t->rows > 0 ? 0.0f : 1.0f;
    for (size_t i = 0; i < tiny_values(t); i++) {
        float value = centre + scale * ((float)random_unit(state) - 0.5f);
        file_put(f, &value, sizeof value);
    }
    tiny_pad(f);
}

/* Writes the model to `path`; false when that fails. vocab is above 256. */
static inline bool tiny_write(const tiny_shape *s, uint64_t seed, const char *path) {
    static tokenizer_file f; /* here only its bytes are used */
    static tiny_list list;
    f.used = list.count = 0;
    tiny_list_tensors(&list, s);
    tiny_put_metadata(&f, s, list.count);
    uint64_t offset = 0;
    for (size_t i = 0; i < list.count; i++) {
        const tiny_tensor *t = &list.tensors[i];
        file_put_str(&f, str_of(t->name));
        file_put_u32(&f, t->rows > 0 ? 2 : 1);
        file_put_u64(&f, t->cols);
        if (t->rows > 0) file_put_u64(&f, t->rows);
        file_put_u32(&f, FORMAT_F32);
        file_put_u64(&f, offset);
        offset += (tiny_values(t) * sizeof(float) + TINY_ALIGNMENT - 1) / TINY_ALIGNMENT * TINY_ALIGNMENT;
    }
    tiny_pad(&f);
    for (size_t i = 0; i < list.count; i++) tiny_put_values(&f, &list.tensors[i], &seed);
    FILE *file = fopen(path, "wb");
    if (file == NULL) return false;
    bool written = fwrite(f.bytes, 1, f.used, file) == f.used;
    return fclose(file) == 0 && written;
}

#endif
