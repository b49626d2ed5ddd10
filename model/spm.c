/* spm.c: SentencePiece's merges, looked up by their text. */
#include "model/spm.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"

/* Characters by number; a byte that belongs to none is one too. */
static size_t next_character(const char *text, size_t bytes, uint32_t *character) {
    if ((uint8_t)*text < 0x80) {
        *character = (uint8_t)*text;
        return 1;
    }
    int32_t code_point;
    size_t n = utf8_decode(text, bytes, &code_point);
    *character = code_point < 0 ? 0x110000u + (uint8_t)*text : (uint32_t)code_point;
    return n;
}

static size_t pair_bit(uint32_t left, uint32_t right) {
    return (size_t)(hash_mix((uint64_t)left << 32 | right) >> (64 - SPM_PAIR_BITS));
}

rs_status spm_open(spm *s, const vocabulary *v, int32_t unknown) {
    *s = (spm){v, unknown, calloc((size_t)1 << SPM_PAIR_BITS >> 3, 1)};
    if (s->pairs == NULL) return status_fail(RS_NO_MEMORY, "no memory for the pairs of characters of a vocabulary");
    for (size_t i = 0; i < v->count; i++) {
        if (!v->tokens[i].plain) continue;
        str text = vocabulary_text(v, (int32_t)i);
        uint32_t left = 0, right;
        for (size_t at = 0; at < text.bytes; left = right) {
            size_t n = next_character(text.data + at, text.bytes - at, &right);
            size_t bit = pair_bit(left, right);
            if (at > 0) s->pairs[bit >> 3] |= (uint8_t)(1u << (bit & 7));
            at += n;
        }
    }
    return RS_OK;
}

void spm_close(spm *s) {
    free(s->pairs);
    *s = (spm){0};
}

size_t spm_heap_bytes(const spm *s) {
    (void)s;
    return (size_t)1 << SPM_PAIR_BITS >> 3;
}

rs_status spm_encode(const spm *s, word_encoder *e, const char *text, size_t bytes) {
    size_t begin = 0;
    uint32_t left = 0, right;
    for (size_t at = 0; at < bytes; left = right) {
        size_t n = next_character(text + at, bytes - at, &right);
        size_t bit = pair_bit(left, right);
        if (at > begin && !(s->pairs[bit >> 3] >> (bit & 7) & 1)) {
            RS_TRY(word_encode(e, text + begin, at - begin));
            begin = at;
        }
        at += n;
    }
    return word_encode(e, text + begin, bytes - begin);
}

static size_t first_character(const void *model, const char *text, size_t bytes, int32_t *token) {
    uint32_t character;
    size_t n = next_character(text, bytes, &character);
    *token = vocabulary_find(((const spm *)model)->vocabulary, text, n, true);
    return n;
}

static word_merge merge_text(const void *model, int32_t left, int32_t right, const char *text, size_t bytes) {
    (void)left;
    (void)right;
    const vocabulary *v = ((const spm *)model)->vocabulary;
    int32_t token = bytes > v->plain_bytes_max ? TOKEN_NONE : vocabulary_find(v, text, bytes, true);
    if (token == TOKEN_NONE) return (word_merge){RANK_NONE, TOKEN_NONE};
    return (word_merge){v->tokens[token].rank, token};
}

static void emit_bytes(const void *model, word_encoder *e, const char *text, size_t bytes) {
    const spm *s = model;
    bool space = bytes == 1 && *text == ' '; /* a vocabulary without U+2581 sees that character's bytes */
    if (space) text = SPACE_SIGN;
    for (size_t i = 0; i < (space ? 3 : bytes); i++) {
        int32_t token = s->vocabulary->byte_tokens[(uint8_t)text[i]];
        if (token == TOKEN_NONE) token = s->unknown;
        if (token != TOKEN_NONE) word_emit(e, token);
    }
}

const word_rules spm_rules = {.first = first_character, .merge = merge_text, .missing = emit_bytes};
