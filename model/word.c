/* word.c: merging with a heap of pairs, and a direct-mapped memory of words. */
#include "model/word.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"

enum {
    KEPT_SLOTS_MAX = 1 << 14,  /* 1 MiB: more no longer fits the L2 cache and was not faster */
    KEPT_TEXT_BYTES_MIN = 512, /* shorter texts hardly repeat a word */
    KEPT_WORD_BYTES_MAX = 64,
};

void word_encoder_open(word_encoder *e, const word_rules *rules, const void *model, size_t bytes) {
    *e = (word_encoder){.rules = rules, .model = model, .fused = TOKEN_NONE, .last = TOKEN_NONE};
    if (bytes < KEPT_TEXT_BYTES_MIN) return;
    size_t slots = 64;
    while (slots < bytes / 8 && slots < KEPT_SLOTS_MAX) slots *= 2;
    e->kept = calloc(slots, sizeof *e->kept);
    e->kept_mask = slots - 1;
}

void word_encoder_close(word_encoder *e) {
    free(e->symbols);
    free(e->heap);
    free(e->kept);
    *e = (word_encoder){0};
}

void word_emit(word_encoder *e, int32_t token) {
    if (e->fresh.n_tokens < WORD_KEPT_TOKENS) e->fresh.tokens[e->fresh.n_tokens] = token;
    e->fresh.n_tokens++;
    if (token == e->fused && token == e->last) return;
    e->last = token;
    if (e->count < e->capacity) e->tokens[e->count] = token;
    e->count++;
}

/* ---- Heap: smallest first ------------------------------------------------------------------------------------- */

static void heap_push(word_encoder *e, uint64_t item) {
    size_t at = e->heap_count++;
    while (at > 0 && e->heap[(at - 1) / 2] > item) {
        e->heap[at] = e->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    e->heap[at] = item;
}

static uint64_t heap_pop(word_encoder *e) {
    uint64_t top = e->heap[0], item = e->heap[--e->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= e->heap_count) break;
        if (child + 1 < e->heap_count && e->heap[child + 1] < e->heap[child]) child++;
        if (e->heap[child] >= item) break;
        e->heap[at] = e->heap[child];
        at = child;
    }
    e->heap[at] = item;
    return top;
}

/* ---- Merging -------------------------------------------------------------------------------------------------- */

static uint32_t symbol_end(const word_encoder *e, const word_symbol *s, size_t bytes) {
    return s->next < 0 ? (uint32_t)bytes : e->symbols[s->next].begin;
}

/* Finds out how symbol `index` merges with the one after it. */
static void rate(word_encoder *e, int32_t index, const char *text, size_t bytes) {
    word_symbol *s = &e->symbols[index];
    s->rank = RANK_NONE;
    if (s->next < 0) return;
    const word_symbol *next = &e->symbols[s->next];
    uint32_t end = symbol_end(e, next, bytes);
    word_merge m = e->rules->merge(e->model, s->token, next->token, text + s->begin, end - s->begin);
    if (m.rank == RANK_NONE) return;
    s->rank = m.rank;
    s->merged = m.token;
    heap_push(e, (uint64_t)m.rank << 32 | (uint32_t)index);
}

/* Room for the symbols of a word of `bytes`. A merge takes one pair from the heap and adds two at most, and there are
 * fewer merges than symbols, so twice their number is enough. */
static rs_status reserve(word_encoder *e, size_t bytes) {
    if (bytes <= e->symbols_max) return RS_OK;
    size_t count = bytes < 256 ? 256 : bytes;
    free(e->symbols);
    free(e->heap);
    e->symbols = malloc(count * sizeof *e->symbols);
    e->heap = malloc(2 * count * sizeof *e->heap);
    e->symbols_max = e->symbols != NULL && e->heap != NULL ? count : 0;
    if (e->symbols_max == 0) return status_fail(RS_NO_MEMORY, "no memory to tokenize a word of %zu bytes", bytes);
    return RS_OK;
}

static rs_status merge_word(word_encoder *e, const char *text, size_t bytes) {
    RS_TRY(reserve(e, bytes));
    int32_t n = 0;
    for (size_t at = 0; at < bytes; n++) {
        word_symbol *s = &e->symbols[n];
        *s = (word_symbol){.begin = (uint32_t)at, .previous = n - 1, .next = n + 1, .rank = RANK_NONE};
        at += e->rules->first(e->model, text + at, bytes - at, &s->token);
    }
    e->symbols[n - 1].next = -1;
    e->heap_count = 0;
    for (int32_t i = 0; i < n; i++) rate(e, i, text, bytes);
    while (e->heap_count > 0) {
        uint64_t top = heap_pop(e);
        word_symbol *s = &e->symbols[(uint32_t)top];
        if (s->rank != top >> 32) continue; /* merged or rated anew since */
        word_symbol *gone = &e->symbols[s->next];
        s->token = s->merged;
        s->next = gone->next;
        gone->rank = RANK_NONE;
        if (s->next >= 0) e->symbols[s->next].previous = (int32_t)(uint32_t)top;
        if (s->previous >= 0) rate(e, s->previous, text, bytes);
        rate(e, (int32_t)(uint32_t)top, text, bytes);
    }
    for (int32_t i = 0; i >= 0; i = e->symbols[i].next) {
        const word_symbol *s = &e->symbols[i];
        if (s->token != TOKEN_NONE) {
            word_emit(e, s->token);
        } else {
            e->rules->missing(e->model, e, text + s->begin, symbol_end(e, s, bytes) - s->begin);
        }
    }
    return RS_OK;
}

static rs_status encode_new(word_encoder *e, const char *text, size_t bytes) {
    if (e->rules->whole_words != NULL) {
        int32_t token = vocabulary_find(e->rules->whole_words, text, bytes, true);
        if (token != TOKEN_NONE) {
            word_emit(e, token);
            return RS_OK;
        }
    }
    return merge_word(e, text, bytes);
}

rs_status word_encode(word_encoder *e, const char *text, size_t bytes) {
    if (bytes == 0) return RS_OK;
    if (e->kept == NULL || bytes > KEPT_WORD_BYTES_MAX) return encode_new(e, text, bytes);
    word_kept *kept = &e->kept[hash_bytes(text, bytes) & e->kept_mask];
    if (kept->bytes == bytes && memcmp(kept->text, text, bytes) == 0) {
        for (uint32_t i = 0; i < kept->n_tokens; i++) word_emit(e, kept->tokens[i]);
        return RS_OK;
    }
    e->fresh.n_tokens = 0;
    RS_TRY(encode_new(e, text, bytes));
    if (e->fresh.n_tokens > WORD_KEPT_TOKENS) return RS_OK;
    e->fresh.text = text;
    e->fresh.bytes = (uint32_t)bytes;
    *kept = e->fresh;
    return RS_OK;
}
