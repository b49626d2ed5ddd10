/* special.c: a sorted table of tokens, narrowed byte by byte. No tree: its nodes would be as many as the bytes of a
 * hostile vocabulary. */
#include "model/special.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"

static int by_bytes(const void *a, const void *b, void *vocabulary_) {
    str x = vocabulary_text(vocabulary_, *(const int32_t *)a), y = vocabulary_text(vocabulary_, *(const int32_t *)b);
    int order = memcmp(x.data, y.data, x.bytes < y.bytes ? x.bytes : y.bytes);
    return order != 0 ? order : (x.bytes > y.bytes) - (x.bytes < y.bytes);
}

static void mark_pair(special_set *s, unsigned first, unsigned second) {
    s->pairs[first << 5 | second >> 3] |= (uint8_t)(1u << (second & 7));
}

static bool has_pair(const special_set *s, const uint8_t *at) {
    return s->pairs[(unsigned)at[0] << 5 | at[1] >> 3] >> (at[1] & 7) & 1;
}

rs_status special_open(special_set *s, const vocabulary *v, unsigned kinds) {
    *s = (special_set){.vocabulary = v};
    size_t count = 0;
    for (size_t i = 0; i < v->count; i++) count += v->tokens[i].bytes > 0 && (kinds >> v->tokens[i].kind & 1);
    if (count == 0) return RS_OK;
    s->sorted = malloc(count * sizeof *s->sorted);
    if (s->sorted == NULL) return status_fail(RS_NO_MEMORY, "no memory for %zu special tokens", count);
    for (size_t i = 0; i < v->count; i++) {
        if (v->tokens[i].bytes > 0 && (kinds >> v->tokens[i].kind & 1)) s->sorted[s->count++] = (int32_t)i;
    }
    qsort_r(s->sorted, s->count, sizeof *s->sorted, by_bytes, (void *)v);
    for (size_t i = 0; i < s->count; i++) {
        str text = vocabulary_text(v, s->sorted[i]);
        const uint8_t *bytes = (const uint8_t *)text.data;
        s->first[bytes[0] + 1]++;
        if (text.bytes > 1) {
            mark_pair(s, bytes[0], bytes[1]);
        } else {
            for (unsigned second = 0; second < 256; second++) mark_pair(s, bytes[0], second);
        }
    }
    for (size_t b = 0; b < 256; b++) s->first[b + 1] += s->first[b];
    return RS_OK;
}

void special_close(special_set *s) {
    free(s->sorted);
    *s = (special_set){0};
}

/* The first of sorted[low..high), which agree in their first `depth` bytes and are longer, whose next byte is at
 * least `byte`. */
static size_t lower_bound(const special_set *s, size_t low, size_t high, size_t depth, unsigned byte) {
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((uint8_t)vocabulary_text(s->vocabulary, s->sorted[middle]).data[depth] < byte) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static int32_t longest(const special_set *s, const uint8_t *text, size_t bytes) {
    size_t low = s->first[text[0]], high = s->first[text[0] + 1];
    int32_t best = TOKEN_NONE;
    for (size_t depth = 1; low < high; depth++) {
        if (vocabulary_text(s->vocabulary, s->sorted[low]).bytes == depth) best = s->sorted[low++]; /* prefixes first */
        if (depth == bytes) break;
        low = lower_bound(s, low, high, depth, text[depth]);
        high = lower_bound(s, low, high, depth, text[depth] + 1u);
    }
    return best;
}

size_t special_find(const special_set *s, const char *text, size_t begin, size_t end, int32_t *token) {
    if (s->count == 0) return end;
    for (size_t at = begin; at < end; at++) {
        const uint8_t *here = (const uint8_t *)text + at;
        if (end - at > 1 && !has_pair(s, here)) continue;
        *token = longest(s, here, end - at);
        if (*token != TOKEN_NONE) return at;
    }
    return end;
}
