/* bpe.c: the merges of byte-level BPE as a hash table from two tokens to one. */
#include "model/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"

/* The slot of a pair, or the free one where it belongs; NULL after too long a chain. */
static bpe_slot *probe(const bpe *b, int32_t left, int32_t right) {
    uint64_t hash = hash_mix((uint64_t)(uint32_t)left << 32 | (uint32_t)right);
    for (size_t i = 0; i < VOCABULARY_PROBES_MAX; i++) {
        bpe_slot *slot = &b->slots[(hash + i) & b->slot_mask];
        if (slot->left == TOKEN_NONE || (slot->left == left && slot->right == right)) return slot;
    }
    return NULL;
}

/* The token spelt so; merges name their tokens as the vocabulary does. */
static int32_t find_spelt(const vocabulary *v, str spelt) {
    char bytes[2 * TOKEN_BYTES_MAX];
    size_t n;
    if (spelt.bytes > sizeof bytes) return TOKEN_NONE;
    int32_t token = vocabulary_spelt(spelt, bytes, &n) ? vocabulary_find(v, bytes, n, true) : TOKEN_NONE;
    return token != TOKEN_NONE ? token : vocabulary_find(v, spelt.data, spelt.bytes, false);
}

static rs_status read_merge(bpe *b, const vocabulary *v, str merge, size_t index) {
    const char *space = merge.bytes > 2 ? memchr(merge.data + 1, ' ', merge.bytes - 1) : NULL;
    if (space == NULL || merge.bytes > 2 * TOKEN_BYTES_MAX) {
        return status_fail(RS_BAD_FORMAT, "merge %zu of tokenizer.ggml.merges is not two tokens and a space between",
                           index);
    }
    char joined[2 * TOKEN_BYTES_MAX];
    size_t left_bytes = (size_t)(space - merge.data), right_bytes = merge.bytes - left_bytes - 1;
    memcpy(joined, merge.data, left_bytes);
    memcpy(joined + left_bytes, space + 1, right_bytes);
    int32_t left = find_spelt(v, (str){merge.data, left_bytes}), right = find_spelt(v, (str){space + 1, right_bytes});
    int32_t token = find_spelt(v, (str){joined, left_bytes + right_bytes});
    if (left == TOKEN_NONE || right == TOKEN_NONE || token == TOKEN_NONE) {
        return status_fail(RS_BAD_FORMAT, "merge %zu of tokenizer.ggml.merges %s", index,
                           token == TOKEN_NONE ? "gives a text that is no token" : "names a text that is no token");
    }
    bpe_slot *slot = probe(b, left, right);
    if (slot == NULL) return status_fail(RS_BAD_FORMAT, "the merges of the file are made to collide in a hash table");
    if (slot->left == TOKEN_NONE)
        *slot = (bpe_slot){left, right, (uint32_t)index, token}; /* the first of equals counts */
    return RS_OK;
}

static rs_status read_merges(bpe *b, const vocabulary *v, const str *merges, size_t count) {
    size_t slots = 16;
    while (slots < count + count / 2) slots *= 2;
    b->slots = malloc(slots * sizeof *b->slots);
    if (b->slots == NULL) return status_fail(RS_NO_MEMORY, "no memory for %zu merges", count);
    b->slot_mask = slots - 1;
    memset(b->slots, 0xFF, slots * sizeof *b->slots);
    for (size_t i = 0; i < count; i++) RS_TRY(read_merge(b, v, merges[i], i));
    return RS_OK;
}

rs_status bpe_open(bpe *b, const vocabulary *v, const gguf *file) {
    *b = (bpe){0};
    for (int byte = 0; byte < 256; byte++) {
        char text = (char)byte;
        b->bytes[byte] = vocabulary_find(v, &text, 1, true);
    }
    gguf_array merges = {0};
    if (!gguf_has(file, "tokenizer.ggml.merges"))
        return status_fail(RS_BAD_FORMAT, "the file has no tokenizer.ggml.merges");
    RS_TRY(gguf_get_array(file, "tokenizer.ggml.merges", &merges));
    if (merges.kind != GGUF_STRING || merges.count > VOCABULARY_MAX) {
        return status_fail(RS_BAD_FORMAT, "tokenizer.ggml.merges must be at most %d strings", VOCABULARY_MAX);
    }
    size_t count = (size_t)merges.count;
    str *texts = malloc((count + 1) * sizeof *texts);
    if (texts == NULL) return status_fail(RS_NO_MEMORY, "no memory to read %zu merges", count);
    gguf_array_strings(&merges, texts);
    rs_status status = read_merges(b, v, texts, count);
    free(texts);
    if (status != RS_OK) bpe_close(b);
    return status;
}

void bpe_close(bpe *b) {
    free(b->slots);
    *b = (bpe){0};
}

size_t bpe_heap_bytes(const bpe *b) {
    return (b->slot_mask + 1) * sizeof *b->slots;
}

static size_t first_byte(const void *model, const char *text, size_t bytes, int32_t *token) {
    (void)bytes;
    *token = ((const bpe *)model)->bytes[(uint8_t)*text];
    return 1;
}

static word_merge merge_tokens(const void *model, int32_t left, int32_t right, const char *text, size_t bytes) {
    (void)text;
    (void)bytes;
    const bpe_slot *slot = left == TOKEN_NONE || right == TOKEN_NONE ? NULL : probe(model, left, right);
    if (slot == NULL || slot->left == TOKEN_NONE) return (word_merge){RANK_NONE, TOKEN_NONE};
    return (word_merge){slot->rank, slot->token};
}

static void drop_byte(const void *model, word_encoder *e, const char *text, size_t bytes) {
    (void)model;
    (void)e;
    (void)text;
    (void)bytes;
}

const word_rules bpe_rules = {.first = first_byte, .merge = merge_tokens, .missing = drop_byte};
