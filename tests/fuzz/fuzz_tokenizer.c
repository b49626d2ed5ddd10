/* fuzz_tokenizer.c: hostile vocabularies and hostile text. The input is read as a small language of its own, so that
 * most inputs reach past the checks of the file: a byte of switches, tokens, merges, and text for what is left. */
#include <assert.h>
#include <stdio.h>

#include "model/tokenizer.h"
#include "tests/tokenizer_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct input {
    const uint8_t *at, *end;
} input;

static uint8_t next(input *in) {
    return in->at < in->end ? *in->at++ : 0;
}

static str next_bytes(input *in, size_t n) {
    size_t left = (size_t)(in->end - in->at);
    str s = {(const char *)in->at, n < left ? n : left};
    in->at += s.bytes;
    return s;
}

static char spelling[1 << 16];
static size_t spelling_used;

static void spell(str s) {
    if (spelling_used + s.bytes > sizeof spelling) return;
    memcpy(spelling + spelling_used, s.data, s.bytes);
    spelling_used += s.bytes;
}

/* Tokens: length (0: the list ends), kind and score, bytes; in GPT-2's letters when told so. */
static void read_tokens(input *in, tokenizer_file *f, bool letters) {
    for (uint8_t head = next(in); head != 0 && f->n_tokens < 1000; head = next(in)) {
        uint8_t how = next(in);
        str raw = next_bytes(in, head % 48);
        if (letters && how % 2) {
            const char *begin = spelling + spelling_used;
            for (size_t i = 0; i < raw.bytes; i++) spell(file_letter((uint8_t)raw.data[i]));
            raw = (str){begin, (size_t)(spelling + spelling_used - begin)};
        }
        file_token(f, raw, how / 2 % 8 > 6 ? 1 : how / 2 % 8, (float)(int8_t)how);
    }
}

/* Merges: two tokens by number (0 0: the list ends), and whether what they give is made a token first. */
static void read_merges(input *in, tokenizer_file *f) {
    while (f->n_merges < 1000 && f->n_tokens > 0) {
        unsigned left = next(in), right = next(in), how = next(in);
        if (left == 0 && right == 0) break;
        const char *begin = spelling + spelling_used;
        left += how / 4 % 4 * 256;
        right += how / 16 % 4 * 256;
        str a = f->tokens[left % f->n_tokens], b = f->tokens[right % f->n_tokens];
        spell(a);
        if (how % 2 == 0) file_token(f, (str){begin, (size_t)(spelling + spelling_used - begin) + b.bytes}, 1, 0);
        spell(b);
        begin = spelling + spelling_used;
        spell(a);
        spell(str_of(" "));
        spell(b);
        file_merge(f, (str){begin, (size_t)(spelling + spelling_used - begin)});
    }
}

static tokenizer_file *read_file(input *in) {
    static const char *const pres[] = {"llama-bpe", "qwen2",  "gpt-2",       "smollm",
                                       "tekken",    "gpt-4o", "deepseek-v3", "qwen35"};
    tokenizer_file *f = calloc(1, sizeof *f);
    if (f == NULL) abort();
    unsigned switches = next(in), more = next(in);
    bool letters = switches & 1;
    spelling_used = 0;
    f->model = letters ? "gpt2" : "llama";
    f->pre = pres[switches >> 1 & 7];
    if (letters && switches & 16) {
        for (unsigned byte = 0; byte < 256; byte++) file_token(f, file_letter(byte), 1, 0);
    }
    static char names[256][8];
    if (!letters && switches & 16) {
        for (unsigned byte = 0; byte < 256; byte++) {
            file_token(f, (str){names[byte], (size_t)snprintf(names[byte], 8, "<0x%02X>", byte)}, 6, 0);
        }
    }
    read_tokens(in, f, letters);
    if (letters) read_merges(in, f);
    if (switches & 32) file_value(f, "tokenizer.ggml.add_space_prefix", GGUF_BOOL, more & 1);
    if (switches & 64) file_value(f, "tokenizer.ggml.bos_token_id", GGUF_U32, more);
    if (switches & 128) f->n_kinds = more % (f->n_tokens + 1);
    if (more & 2) file_value(f, "tokenizer.ggml.unknown_token_id", GGUF_U32, more >> 2);
    if (more & 4) file_value(f, "tokenizer.ggml.add_eos_token", GGUF_BOOL, 1);
    return f;
}

static void check_text(const tokenizer *t, str text, unsigned flags, bool whole_bytes) {
    static int32_t tokens[1 << 16];
    static char out[1 << 12];
    size_t count, again, bytes, total = 0;
    rs_status status = tokenizer_encode(t, text.data, text.bytes, flags, tokens, 1 << 16, &count);
    if (status == RS_LIMIT) return;
    assert(status == RS_OK);
    assert(tokenizer_encode(t, text.data, text.bytes, flags, NULL, 0, &again) == (count > 0 ? RS_LIMIT : RS_OK));
    assert(again == count);
    rs_text stream = {0};
    for (size_t i = 0; i <= count; i++) {
        int32_t token = i < count ? tokens[i] : -1;
        assert(token >= (i < count ? 0 : -1) && token < (int32_t)tokenizer_vocab(t));
        assert(tokenizer_decode(t, &stream, token, flags & 4, out, sizeof out, &bytes) == RS_OK);
        for (size_t at = 0; at < bytes;) {
            int32_t code_point;
            at += utf8_decode(out + at, bytes - at, &code_point);
            assert(code_point >= 0);
        }
        str piece = tokenizer_piece(t, token);
        if (whole_bytes && i < count) {
            assert(total + piece.bytes <= text.bytes && memcmp(piece.data, text.data + total, piece.bytes) == 0);
        }
        total += piece.bytes;
    }
    assert(!whole_bytes || total == text.bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, data + size};
    tokenizer_file *f = read_file(&in);
    unsigned switches = size > 0 ? data[0] : 0;
    file_write(f);
    gguf *file;
    tokenizer *t;
    if (gguf_parse(f->bytes, f->used, &file) == RS_OK) {
        if (tokenizer_open(file, &t) == RS_OK) {
            unsigned flags = next(&in) & 7;
            /* With a token for every byte, byte-level text is never changed. */
            bool whole_bytes = (switches & 0x91) == 0x11 && !(flags & RS_TOKENS_ADD_SPECIAL);
            check_text(t, (str){(const char *)in.at, (size_t)(in.end - in.at)}, flags, whole_bytes);
            tokenizer_close(t);
        } else {
            assert(rs_last_error()[0] != 0);
        }
        gguf_close(file);
    }
    free(f->bytes);
    free(f);
    return 0;
}
