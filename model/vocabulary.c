/* vocabulary.c: reads the token table of a GGUF file into one text and one hash table. */
#include "model/vocabulary.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

/* ---- Hashing -------------------------------------------------------------------------------------------------- */

uint64_t hash_bytes(const char *text, size_t bytes) {
    uint64_t h = bytes + 1, word;
    while (bytes >= sizeof word) {
        memcpy(&word, text, sizeof word);
        h = hash_mix(h ^ word);
        text += sizeof word;
        bytes -= sizeof word;
    }
    if (bytes >= 4) { /* two loads that may overlap */
        uint32_t low, high;
        memcpy(&low, text, 4);
        memcpy(&high, text + bytes - 4, 4);
        return hash_mix(h ^ (low | (uint64_t)high << 32));
    }
    if (bytes == 0) return h;
    const uint8_t *s = (const uint8_t *)text;
    return hash_mix(h ^ (s[0] | (uint64_t)s[bytes / 2] << 8 | (uint64_t)s[bytes - 1] << 16));
}

static uint32_t slot_hash(const char *text, size_t bytes, bool plain) {
    uint64_t wide = hash_bytes(text, bytes) + plain;
    return (uint32_t)(wide ^ wide >> 32);
}

/* The slot of this text, or the free slot where it belongs; NULL after too long a chain. */
static vocabulary_slot *probe(const vocabulary *v, uint32_t hash, const char *text, size_t bytes, bool plain) {
    for (size_t i = 0; i < VOCABULARY_PROBES_MAX; i++) {
        vocabulary_slot *slot = &v->slots[(hash + i) & v->slot_mask];
        if (slot->token == TOKEN_NONE) return slot;
        if (slot->hash != hash) continue;
        const vocabulary_token *t = &v->tokens[slot->token];
        if (t->bytes == bytes && t->plain == plain && memcmp(v->text + t->begin, text, bytes) == 0) return slot;
    }
    return NULL;
}

int32_t vocabulary_find(const vocabulary *v, const char *text, size_t bytes, bool plain) {
    if (bytes == 0 || bytes > TOKEN_BYTES_MAX) return TOKEN_NONE;
    const vocabulary_slot *slot = probe(v, slot_hash(text, bytes, plain), text, bytes, plain);
    return slot == NULL ? TOKEN_NONE : slot->token;
}

static rs_status index_tokens(vocabulary *v) {
    size_t slots = 16;
    while (slots < v->count + v->count / 2) slots *= 2;
    v->slots = malloc(slots * sizeof *v->slots);
    if (v->slots == NULL) return status_fail(RS_NO_MEMORY, "no memory for the index of %zu tokens", v->count);
    v->slot_mask = slots - 1;
    for (size_t i = 0; i < slots; i++) v->slots[i] = (vocabulary_slot){0, TOKEN_NONE};
    for (size_t i = 0; i < v->count; i++) {
        const vocabulary_token *t = &v->tokens[i];
        if (t->bytes == 0 || t->kind == TOKEN_BYTE) continue;
        const char *text = v->text + t->begin;
        uint32_t hash = slot_hash(text, t->bytes, t->plain);
        vocabulary_slot *slot = probe(v, hash, text, t->bytes, t->plain);
        if (slot == NULL)
            return status_fail(RS_BAD_FORMAT, "the tokens of the file are made to collide in a hash table");
        if (slot->token != TOKEN_NONE) {
            return status_fail(RS_BAD_FORMAT, "tokens %d and %zu of the file have the same text", slot->token, i);
        }
        *slot = (vocabulary_slot){hash, (int32_t)i};
    }
    return RS_OK;
}

/* ---- Spellings ------------------------------------------------------------------------------------------------ */

/* The byte a letter of GPT-2's alphabet stands for, or -1: printable Latin-1 characters are themselves, and the bytes
 * left over (0-32, 127-160, 173) are, in order, U+0100 and up. */
static int byte_of_letter(int32_t letter) {
    if ((letter >= 33 && letter <= 126) || (letter >= 161 && letter <= 172) || (letter >= 174 && letter <= 255)) {
        return letter;
    }
    if (letter >= 256 && letter <= 288) return letter - 256;
    if (letter >= 289 && letter <= 322) return letter - 289 + 127;
    return letter == 323 ? 173 : -1;
}

bool vocabulary_spelt(str spelt, char *out, size_t *bytes) {
    size_t n = 0;
    for (size_t at = 0; at < spelt.bytes;) {
        int32_t letter;
        at += utf8_decode(spelt.data + at, spelt.bytes - at, &letter);
        int byte = byte_of_letter(letter);
        if (byte < 0) return false;
        out[n++] = (char)byte;
    }
    *bytes = n;
    return true;
}

/* U+2581 to a space: out [raw.bytes]. */
static size_t unescape_spaces(str raw, char *out) {
    size_t n = 0;
    for (size_t at = 0; at < raw.bytes;) {
        if (raw.bytes - at >= 3 && memcmp(raw.data + at, SPACE_SIGN, 3) == 0) {
            out[n++] = ' ';
            at += 3;
        } else {
            out[n++] = raw.data[at++];
        }
    }
    return n;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* The byte of "<0x0A>", or -1. */
static int byte_of_name(str raw) {
    if (raw.bytes != 6 || memcmp(raw.data, "<0x", 3) != 0 || raw.data[5] != '>') return -1;
    int high = hex_digit(raw.data[3]), low = hex_digit(raw.data[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* Names that end a turn in the model families known here. Files often give them another kind than CONTROL. */
static bool name_ends(str raw) {
    static const char *const names[] = {
        "<|im_end|>", "<|eot_id|>",    "<|eom_id|>",    "<|endoftext|>", "<|end_of_text|>", "<|end|>",
        "<|return|>", "<|call|>",      "<end_of_turn>", "<eos>",         "<EOT>",           "<|END_OF_TURN_TOKEN|>",
        "<|eot|>",    "<|endofturn|>", "<|EOT|>",
    };
    if (raw.bytes < 5 || raw.bytes > 24 || raw.data[0] != '<') return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (str_equal_text(raw, names[i])) return true;
    }
    return false;
}

/* ---- Reading -------------------------------------------------------------------------------------------------- */

/* Puts what a token stands for at `out` [raw.bytes] and tells whether ordinary text can become it. */
static bool spell(token_kind kind, str raw, bool byte_letters, char *out, size_t *bytes) {
    bool ordinary = kind == TOKEN_NORMAL || kind == TOKEN_UNUSED;
    if (!byte_letters) {
        *bytes = unescape_spaces(raw, out);
        /* Pieces spell a space U+2581, so one with a real space is never met; runs of spaces that the user of
         * SentencePiece defined are spelt either way and are found as special tokens. */
        str spelt = kind == TOKEN_USER_DEFINED ? (str){out, *bytes} : raw;
        bool space = memchr(spelt.data, ' ', spelt.bytes) != NULL;
        return (ordinary || kind == TOKEN_USER_DEFINED) && !space;
    }
    if (ordinary && vocabulary_spelt(raw, out, bytes)) return true;
    memcpy(out, raw.data, raw.bytes);
    *bytes = raw.bytes;
    return false;
}

/* Fills v->tokens[index] and appends its text to v->text, which has room for the raw text. */
static rs_status read_token(vocabulary *v, size_t index, str raw, bool byte_letters) {
    vocabulary_token *t = &v->tokens[index];
    char *out = v->text + v->text_bytes;
    size_t bytes = 1;
    t->ends = name_ends(raw);
    if (t->ends) t->kind = TOKEN_CONTROL;
    if (t->kind == TOKEN_BYTE) {
        int byte = byte_of_name(raw);
        if (byte < 0) {
            return status_fail(RS_BAD_FORMAT, "token %zu is of kind BYTE but not one of <0x00> to <0xFF>", index);
        }
        if (v->byte_tokens[byte] != TOKEN_NONE) {
            return status_fail(RS_BAD_FORMAT, "tokens %d and %zu stand for the same byte", v->byte_tokens[byte], index);
        }
        v->byte_tokens[byte] = (int32_t)index;
        out[0] = (char)byte;
    } else {
        t->plain = spell(t->kind, raw, byte_letters, out, &bytes);
    }
    t->begin = (uint32_t)v->text_bytes;
    t->bytes = (uint16_t)bytes;
    if (t->plain && bytes > v->plain_bytes_max) v->plain_bytes_max = bytes;
    v->text_bytes += bytes;
    return RS_OK;
}

static bool is_integers(gguf_kind kind) {
    return kind <= GGUF_I32 || kind == GGUF_U64 || kind == GGUF_I64;
}

static rs_status read_kinds(vocabulary *v, const gguf *file) {
    gguf_array kinds = {0};
    if (!gguf_has(file, "tokenizer.ggml.token_type")) {
        for (size_t i = 0; i < v->count; i++) v->tokens[i].kind = TOKEN_NORMAL;
        return RS_OK;
    }
    RS_TRY(gguf_get_array(file, "tokenizer.ggml.token_type", &kinds));
    if (!is_integers(kinds.kind) || kinds.count != v->count) {
        return status_fail(RS_BAD_FORMAT,
                           "tokenizer.ggml.token_type must have one integer for each of %zu tokens, not %llu", v->count,
                           (unsigned long long)kinds.count);
    }
    for (size_t i = 0; i < v->count; i++) {
        int64_t kind = gguf_array_int(&kinds, i);
        v->tokens[i].kind = kind >= TOKEN_NORMAL && kind <= TOKEN_BYTE ? (uint8_t)kind : TOKEN_NORMAL;
    }
    return RS_OK;
}

/* Scores become ranks: the same order turned round, as integers. */
static rs_status read_scores(vocabulary *v, const gguf *file) {
    gguf_array scores = {0};
    RS_TRY(gguf_get_array(file, "tokenizer.ggml.scores", &scores));
    bool integers = is_integers(scores.kind);
    if ((!integers && scores.kind != GGUF_F32 && scores.kind != GGUF_F64) || scores.count != v->count) {
        return status_fail(RS_BAD_FORMAT, "tokenizer.ggml.scores must have one number for each of %zu tokens, not %llu",
                           v->count, (unsigned long long)scores.count);
    }
    for (size_t i = 0; i < v->count; i++) {
        float score = (integers ? (float)gguf_array_int(&scores, i) : gguf_array_float(&scores, i)) + 0.0f; /* no -0 */
        if (!isfinite(score)) return status_fail(RS_BAD_FORMAT, "the score of token %zu is not a finite number", i);
        uint32_t bits;
        memcpy(&bits, &score, sizeof bits);
        v->tokens[i].rank = bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
    }
    return RS_OK;
}

/* Allocates what the raw texts need, after checking their sizes. */
static rs_status size_up(vocabulary *v, const str *raw) {
    size_t bytes = 0;
    for (size_t i = 0; i < v->count; i++) {
        if (raw[i].bytes > TOKEN_BYTES_MAX) {
            return status_fail(RS_BAD_FORMAT, "token %zu has %zu bytes of text, more than the %d allowed", i,
                               raw[i].bytes, TOKEN_BYTES_MAX);
        }
        bytes += raw[i].bytes;
    }
    if (bytes > UINT32_MAX) return status_fail(RS_BAD_FORMAT, "the tokens of the file have %zu bytes of text", bytes);
    v->tokens = calloc(v->count, sizeof *v->tokens);
    v->text = malloc(bytes + 1);
    if (v->tokens == NULL || v->text == NULL) return status_fail(RS_NO_MEMORY, "no memory for %zu tokens", v->count);
    return RS_OK;
}

static rs_status read_all(vocabulary *v, const gguf *file, const str *raw, bool byte_letters) {
    RS_TRY(size_up(v, raw));
    RS_TRY(read_kinds(v, file));
    if (!byte_letters) RS_TRY(read_scores(v, file));
    for (size_t i = 0; i < v->count; i++) RS_TRY(read_token(v, i, raw[i], byte_letters));
    return index_tokens(v);
}

rs_status vocabulary_open(vocabulary *v, const gguf *file, bool byte_letters) {
    *v = (vocabulary){0};
    memset(v->byte_tokens, 0xFF, sizeof v->byte_tokens);
    gguf_array texts = {0};
    RS_TRY(gguf_get_array(file, "tokenizer.ggml.tokens", &texts));
    if (texts.kind != GGUF_STRING || texts.count == 0 || texts.count > VOCABULARY_MAX) {
        return status_fail(RS_BAD_FORMAT, "tokenizer.ggml.tokens must have 1 to %d strings, not %llu", VOCABULARY_MAX,
                           (unsigned long long)texts.count);
    }
    v->count = (size_t)texts.count;
    str *raw = malloc(v->count * sizeof *raw);
    if (raw == NULL) return status_fail(RS_NO_MEMORY, "no memory to read %zu tokens", v->count);
    gguf_array_strings(&texts, raw);
    rs_status status = read_all(v, file, raw, byte_letters);
    free(raw);
    if (status != RS_OK) vocabulary_close(v);
    return status;
}

void vocabulary_close(vocabulary *v) {
    free(v->tokens);
    free(v->text);
    free(v->slots);
    *v = (vocabulary){0};
}

size_t vocabulary_heap_bytes(const vocabulary *v) {
    return v->count * sizeof *v->tokens + v->text_bytes + (v->slot_mask + 1) * sizeof *v->slots;
}
