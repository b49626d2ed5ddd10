/* tokenizer.c: opens a file's tokenizer, and turns text to tokens and back with its parts: special tokens are taken out
 * first, the text between goes to byte-level BPE or to SentencePiece. */
#include "model/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "model/bpe.h"
#include "model/pretokenizer.h"
#include "model/special.h"
#include "model/spm.h"

enum { TEXT_BYTES_MAX = 1 << 28 }; /* a hundred times the longest contexts; symbols of a word have 31-bit numbers */

struct tokenizer {
    vocabulary vocabulary;
    special_set always, parsed; /* what is recognised without and with RS_TOKENS_PARSE_SPECIAL */
    pretokenizer *pretokenizer; /* NULL: SentencePiece */
    word_rules rules;
    bpe bpe;
    spm spm;
    int32_t bos, eos, unknown;
    bool add_bos, add_eos, add_space_prefix;
};

/* ---- Opening -------------------------------------------------------------------------------------------------- */

/* A token named by the file; what older converters wrote for "none" is none. */
static rs_status read_id(const tokenizer *t, const gguf *file, const char *key, int32_t *id) {
    int64_t value = *id;
    RS_TRY(gguf_get_int(file, key, &value));
    if (value == -1 || value == UINT32_MAX) value = TOKEN_NONE;
    if (value < TOKEN_NONE || value >= (int64_t)t->vocabulary.count) {
        return status_fail(RS_BAD_FORMAT, "%s is %lld, but the file has tokens 0 to %zu", key, (long long)value,
                           t->vocabulary.count - 1);
    }
    *id = (int32_t)value;
    return RS_OK;
}

/* In gpt-oss <|end|> ends a message of several in a turn; <|return|> and <|call|> end the turn. */
static void correct_end(vocabulary *v) {
    int32_t end = vocabulary_find(v, "<|end|>", 7, false);
    bool others = vocabulary_find(v, "<|return|>", 10, false) != TOKEN_NONE &&
                  vocabulary_find(v, "<|call|>", 8, false) != TOKEN_NONE;
    if (end != TOKEN_NONE && others) v->tokens[end].ends = false;
}

static rs_status read_rules(tokenizer *t, const gguf *file) {
    bool sentencepiece = t->pretokenizer == NULL;
    int32_t known =
        sentencepiece && t->vocabulary.count > 2 ? 0 : TOKEN_NONE; /* SentencePiece's usual <unk> <s> </s> */
    t->unknown = known;
    t->bos = known < 0 ? TOKEN_NONE : 1;
    t->eos = known < 0 ? TOKEN_NONE : 2;
    RS_TRY(read_id(t, file, "tokenizer.ggml.bos_token_id", &t->bos));
    RS_TRY(read_id(t, file, "tokenizer.ggml.eos_token_id", &t->eos));
    RS_TRY(read_id(t, file, "tokenizer.ggml.unknown_token_id", &t->unknown));
    int32_t turn = TOKEN_NONE, message = TOKEN_NONE;
    RS_TRY(read_id(t, file, "tokenizer.ggml.eot_token_id", &turn));
    RS_TRY(read_id(t, file, "tokenizer.ggml.eom_token_id", &message));
    correct_end(&t->vocabulary);
    int32_t ends[] = {t->eos, turn, message};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        if (ends[i] != TOKEN_NONE) t->vocabulary.tokens[ends[i]].ends = true;
    }
    t->add_bos = sentencepiece || pretokenizer_describe(t->pretokenizer)->add_bos;
    t->add_space_prefix = sentencepiece;
    RS_TRY(gguf_get_bool(file, "tokenizer.ggml.add_bos_token", &t->add_bos));
    RS_TRY(gguf_get_bool(file, "tokenizer.ggml.add_eos_token", &t->add_eos));
    RS_TRY(gguf_get_bool(file, "tokenizer.ggml.add_space_prefix", &t->add_space_prefix));
    t->add_space_prefix &= sentencepiece; /* some byte-level files say true and never meant it */
    return RS_OK;
}

static rs_status open_parts(tokenizer *t, const gguf *file) {
    str model = {0}, pre = str_of("default");
    if (!gguf_has(file, "tokenizer.ggml.model"))
        return status_fail(RS_BAD_FORMAT, "the file has no tokenizer.ggml.model");
    RS_TRY(gguf_get_str(file, "tokenizer.ggml.model", &model));
    RS_TRY(gguf_get_str(file, "tokenizer.ggml.pre", &pre));
    bool byte_letters = str_equal_text(model, "gpt2");
    if (!byte_letters && !str_equal_text(model, "llama")) {
        return status_fail(RS_UNSUPPORTED, "tokenizer.ggml.model '%.*s' is not known; known are gpt2 and llama",
                           (int)(model.bytes < 40 ? model.bytes : 40), model.data);
    }
    if (byte_letters) RS_TRY(pretokenizer_open(pre, &t->pretokenizer));
    RS_TRY(vocabulary_open(&t->vocabulary, file, byte_letters));
    RS_TRY(read_rules(t, file));
    RS_TRY(special_open(&t->always, &t->vocabulary, 1u << TOKEN_USER_DEFINED));
    RS_TRY(
        special_open(&t->parsed, &t->vocabulary, 1u << TOKEN_USER_DEFINED | 1u << TOKEN_CONTROL | 1u << TOKEN_UNKNOWN));
    if (!byte_letters) {
        t->rules = spm_rules;
        return spm_open(&t->spm, &t->vocabulary, t->unknown);
    }
    t->rules = bpe_rules;
    if (pretokenizer_describe(t->pretokenizer)->whole_words) t->rules.whole_words = &t->vocabulary;
    return bpe_open(&t->bpe, &t->vocabulary, file);
}

rs_status tokenizer_open(const gguf *file, tokenizer **out) {
    tokenizer *t = calloc(1, sizeof *t);
    if (t == NULL) return status_fail(RS_NO_MEMORY, "no memory for a tokenizer");
    rs_status status = open_parts(t, file);
    if (status != RS_OK) {
        tokenizer_close(t);
        return status;
    }
    *out = t;
    return RS_OK;
}

void tokenizer_close(tokenizer *t) {
    if (t == NULL) return;
    spm_close(&t->spm);
    bpe_close(&t->bpe);
    special_close(&t->parsed);
    special_close(&t->always);
    vocabulary_close(&t->vocabulary);
    pretokenizer_close(t->pretokenizer);
    free(t);
}

/* ---- Describing ----------------------------------------------------------------------------------------------- */

size_t tokenizer_vocab(const tokenizer *t) {
    return t->vocabulary.count;
}

size_t tokenizer_heap_bytes(const tokenizer *t) {
    size_t specials = (t->always.count + t->parsed.count) * sizeof(int32_t);
    size_t model = t->pretokenizer == NULL ? spm_heap_bytes(&t->spm)
                                           : bpe_heap_bytes(&t->bpe) + pretokenizer_heap_bytes(t->pretokenizer);
    return sizeof *t + vocabulary_heap_bytes(&t->vocabulary) + specials + model;
}

int32_t tokenizer_bos(const tokenizer *t) {
    return t->bos;
}

int32_t tokenizer_eos(const tokenizer *t) {
    return t->eos;
}

bool tokenizer_ends(const tokenizer *t, int32_t token) {
    return token >= 0 && (size_t)token < t->vocabulary.count && t->vocabulary.tokens[token].ends;
}

str tokenizer_piece(const tokenizer *t, int32_t token) {
    return token >= 0 && (size_t)token < t->vocabulary.count ? vocabulary_text(&t->vocabulary, token) : (str){"", 0};
}

/* ---- Encoding ------------------------------------------------------------------------------------------------- */

typedef struct encoding {
    const tokenizer *tokenizer;
    word_encoder words;
    pretokenizer_scratch *scratch;
    char *spaced;   /* SentencePiece: the text with U+2581 as the space it stands for; NULL: has none */
    char *prefixed; /* SentencePiece: fragments of text, each after a space; NULL: no such spaces */
    size_t prefixed_used;
} encoding;

static rs_status encode_word(void *words, const char *word, size_t bytes) {
    return word_encode(words, word, bytes);
}

/* The bytes of text[0..bytes) up to the first that is in a character (`valid` false) or in none (true). */
static size_t run_length(const char *text, size_t bytes, bool valid) {
    size_t at = 0;
    while (at < bytes) {
        uint64_t eight;
        if (valid && bytes - at >= 8 && (memcpy(&eight, text + at, 8), (eight & 0x8080808080808080u) == 0)) {
            at += 8; /* ASCII */
            continue;
        }
        int32_t code_point;
        size_t n = utf8_decode(text + at, bytes - at, &code_point);
        if ((code_point >= 0) != valid) break;
        at += n;
    }
    return at;
}

/* Each run of bytes that are in no character is a word of its own, so that no byte is lost or replaced. */
static rs_status encode_byte_level(encoding *e, const char *text, size_t bytes) {
    for (size_t at = 0; at < bytes;) {
        size_t n = run_length(text + at, bytes - at, true);
        if (n > 0) {
            RS_TRY(pretokenizer_split(e->tokenizer->pretokenizer, e->scratch, text + at, n, encode_word, &e->words));
        }
        at += n;
        n = run_length(text + at, bytes - at, false);
        RS_TRY(word_encode(&e->words, text + at, n));
        at += n;
    }
    return RS_OK;
}

/* Copies text with U+2581 as the space it stands for. */
static size_t copy_spaced(str text, char *out) {
    const char *at = text.data, *end = at + text.bytes;
    size_t written = 0;
    for (;;) {
        const char *sign = memmem(at, (size_t)(end - at), SPACE_SIGN, 3);
        size_t n = (size_t)((sign == NULL ? end : sign) - at);
        memcpy(out + written, at, n);
        written += n;
        if (sign == NULL) return written;
        out[written++] = ' ';
        at = sign + 3;
    }
}

/* Text at the start or after a special token: both begin with the added space, as in Llama's own tokenizer. */
static rs_status encode_fragment(encoding *e, const char *text, size_t bytes) {
    if (bytes == 0) return RS_OK;
    if (e->tokenizer->pretokenizer != NULL) return encode_byte_level(e, text, bytes);
    if (e->prefixed != NULL) {
        char *copy = e->prefixed + e->prefixed_used;
        copy[0] = ' ';
        memcpy(copy + 1, text, bytes);
        text = copy;
        e->prefixed_used += ++bytes;
    }
    return spm_encode(&e->tokenizer->spm, &e->words, text, bytes);
}

static rs_status encode_text(encoding *e, const char *text, size_t bytes, unsigned flags) {
    const tokenizer *t = e->tokenizer;
    const special_set *specials = flags & RS_TOKENS_PARSE_SPECIAL ? &t->parsed : &t->always;
    for (size_t at = 0; at < bytes;) {
        int32_t token;
        size_t end = special_find(specials, text, at, bytes, &token);
        RS_TRY(encode_fragment(e, text + at, end - at));
        if (end == bytes) break;
        e->words.last = TOKEN_NONE;
        word_emit(&e->words, token);
        at = end + t->vocabulary.tokens[token].bytes;
    }
    return RS_OK;
}

/* Makes the state of a call, and the copies of *text that SentencePiece needs; encoding_close in any case. */
static rs_status encoding_open(encoding *e, const tokenizer *t, str *text) {
    bool byte_level = t->pretokenizer != NULL;
    *e = (encoding){.tokenizer = t};
    word_encoder_open(&e->words, &t->rules, byte_level ? (const void *)&t->bpe : &t->spm, text->bytes);
    if (byte_level) return pretokenizer_scratch_open(t->pretokenizer, &e->scratch);
    e->words.fused = t->unknown;
    if (text->bytes > 0 && memmem(text->data, text->bytes, SPACE_SIGN, 3) != NULL) {
        e->spaced = malloc(text->bytes);
        if (e->spaced == NULL) return status_fail(RS_NO_MEMORY, "no memory to tokenize %zu bytes", text->bytes);
        *text = (str){e->spaced, copy_spaced(*text, e->spaced)};
    }
    if (t->add_space_prefix) {
        e->prefixed = malloc(2 * text->bytes + 1); /* a space before each fragment, which has a byte at least */
        if (e->prefixed == NULL) return status_fail(RS_NO_MEMORY, "no memory to tokenize %zu bytes", text->bytes);
    }
    return RS_OK;
}

static void encoding_close(encoding *e) {
    free(e->prefixed);
    free(e->spaced);
    pretokenizer_scratch_close(e->scratch);
    word_encoder_close(&e->words);
}

rs_status tokenizer_encode(const tokenizer *t, const char *text, size_t bytes, unsigned flags, int32_t *tokens,
                           size_t capacity, size_t *count) {
    if (bytes > TEXT_BYTES_MAX) {
        return status_fail(RS_LIMIT, "a text of %zu bytes is more than the %d that are tokenized at once", bytes,
                           TEXT_BYTES_MAX);
    }
    encoding e;
    str whole = {text, bytes};
    rs_status status = encoding_open(&e, t, &whole);
    if (status != RS_OK) goto close;
    e.words.tokens = tokens;
    e.words.capacity = capacity;
    bool add = flags & RS_TOKENS_ADD_SPECIAL;
    if (add && t->add_bos && t->bos != TOKEN_NONE) word_emit(&e.words, t->bos);
    status = encode_text(&e, whole.data, whole.bytes, flags);
    if (status != RS_OK) goto close;
    if (add && t->add_eos && t->eos != TOKEN_NONE) word_emit(&e.words, t->eos);
    *count = e.words.count;
    if (*count > capacity) {
        status = status_fail(RS_LIMIT, "the text has %zu tokens, the buffer room for %zu", *count, capacity);
    }
close:
    encoding_close(&e);
    return status;
}

/* ---- Decoding ------------------------------------------------------------------------------------------------- */

/* What the token adds to the text. */
static str token_text(const tokenizer *t, int32_t token, bool special) {
    if (token == TOKEN_NONE) return (str){"", 0};
    uint8_t kind = t->vocabulary.tokens[token].kind;
    if (!special && (kind == TOKEN_CONTROL || kind == TOKEN_UNKNOWN)) return (str){"", 0};
    return vocabulary_text(&t->vocabulary, token);
}

/* Writes the characters of `bytes`, with U+FFFD for each longest run that begins one and breaks off, and keeps in
 * *kept how many bytes at the end may still become one. Returns the bytes written; only counts when `out` is NULL. */
static size_t write_characters(const char *bytes, size_t n, char *out, size_t *kept) {
    size_t written = 0;
    *kept = 0;
    for (size_t at = 0; at < n;) {
        int32_t code_point;
        size_t length = utf8_decode(bytes + at, n - at, &code_point);
        const char *source = bytes + at;
        size_t source_bytes = length;
        if (code_point < 0) {
            size_t partial = 1;
            while (partial < 3 && at + partial < n && utf8_is_partial(source, partial + 1)) partial++;
            if (at + partial == n && utf8_is_partial(source, partial)) {
                *kept = partial;
                return written;
            }
            length = partial;
            source = "\xEF\xBF\xBD";
            source_bytes = 3;
        }
        if (out != NULL) memcpy(out + written, source, source_bytes);
        written += source_bytes;
        at += length;
    }
    return written;
}

rs_status tokenizer_decode(const tokenizer *t, rs_text *stream, int32_t token, bool special, char *out, size_t capacity,
                           size_t *bytes) {
    char joined[sizeof stream->held + TOKEN_BYTES_MAX];
    if (token < TOKEN_NONE || (token >= 0 && (size_t)token >= t->vocabulary.count)) {
        return status_fail(RS_BAD_ARGUMENT, "token %d is not one of the %zu of the model", token, t->vocabulary.count);
    }
    if (stream->n_held > sizeof stream->held)
        return status_fail(RS_BAD_ARGUMENT, "the stream of text was not set to zero");
    str text = token_text(t, token, special);
    bool started = stream->started || text.bytes > 0;
    if (t->add_space_prefix && !stream->started && text.bytes > 0 && text.data[0] == ' ' &&
        t->vocabulary.tokens[token].plain) {
        text = (str){text.data + 1, text.bytes - 1};
    }
    size_t n = stream->n_held + text.bytes;
    memcpy(joined, stream->held, stream->n_held);
    memcpy(joined + stream->n_held, text.data, text.bytes);
    size_t kept, needed = write_characters(joined, n, NULL, &kept);
    bool flush = token == TOKEN_NONE && kept > 0;
    if (flush) needed += 3;
    if (needed > capacity) {
        return status_fail(RS_LIMIT, "the text of token %d needs %zu bytes, not %zu", token, needed, capacity);
    }
    write_characters(joined, n, out, &kept);
    if (flush) memcpy(out + needed - 3, "\xEF\xBF\xBD", 3);
    stream->n_held = flush ? 0 : (uint32_t)kept;
    memcpy(stream->held, joined + n - kept, stream->n_held);
    stream->started = started;
    *bytes = needed;
    return RS_OK;
}
