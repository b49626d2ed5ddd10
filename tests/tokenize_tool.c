/* tokenize_tool.c: a tokenizer as a filter, for comparison with other implementations and for measuring.
 *
 *   tokenize_tool FILE.gguf encode FLAGS      stdin: records of 4 bytes length and text; stdout: a line of ids each
 *   tokenize_tool FILE.gguf decode            stdin: lines of ids; stdout: records of 4 bytes length and text
 *   tokenize_tool FILE.gguf describe          vocabulary, BOS, EOS, heap bytes, seconds to open
 *   tokenize_tool FILE.gguf bench TEXT        MB per second of one core over a file, in pieces of 64 KiB and whole */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "model/tokenizer.h"

static void fail(void) {
    fprintf(stderr, "tokenize_tool: %s\n", rs_last_error());
    exit(1);
}

static int32_t *encode(const tokenizer *t, const char *text, size_t bytes, unsigned flags, size_t *count) {
    size_t capacity = bytes + 16;
    int32_t *tokens = malloc(capacity * sizeof *tokens);
    rs_status status = tokenizer_encode(t, text, bytes, flags, tokens, capacity, count);
    if (status == RS_LIMIT && *count > capacity) {
        capacity = *count;
        tokens = realloc(tokens, capacity * sizeof *tokens);
        status = tokenizer_encode(t, text, bytes, flags, tokens, capacity, count);
    }
    if (status != RS_OK) fail();
    return tokens;
}

static void encode_records(const tokenizer *t, unsigned flags) {
    uint32_t bytes;
    while (fread(&bytes, sizeof bytes, 1, stdin) == 1) {
        char *text = malloc(bytes + 1);
        if (fread(text, 1, bytes, stdin) != bytes) exit(1);
        size_t count;
        int32_t *tokens = encode(t, text, bytes, flags, &count);
        for (size_t i = 0; i < count; i++) printf(i == 0 ? "%d" : " %d", tokens[i]);
        printf("\n");
        free(tokens);
        free(text);
    }
}

static void decode_lines(const tokenizer *t) {
    char *line = NULL;
    size_t size = 0;
    while (getline(&line, &size, stdin) > 0) {
        rs_text stream = {0};
        size_t room = strlen(line) * 1100 + 64, used = 0, bytes;
        char *out = malloc(room);
        for (char *at = line, *end;; at = end) {
            long token = strtol(at, &end, 10);
            if (end == at) token = -1;
            if (tokenizer_decode(t, &stream, (int32_t)token, false, out + used, room - used, &bytes) != RS_OK) fail();
            used += bytes;
            if (end == at) break;
        }
        uint32_t length = (uint32_t)used;
        fwrite(&length, sizeof length, 1, stdout);
        fwrite(out, 1, used, stdout);
        free(out);
    }
    free(line);
}

static void bench(const tokenizer *t, const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) exit(1);
    fseek(file, 0, SEEK_END);
    size_t bytes = (size_t)ftell(file), piece_sizes[] = {65536, bytes};
    rewind(file);
    char *text = malloc(bytes + 1);
    if (fread(text, 1, bytes, file) != bytes) exit(1);
    fclose(file);
    for (int i = 0; i < 2; i++) {
        double best = 1e9;
        size_t tokens = 0;
        for (int repeat = 0; repeat < 5; repeat++) {
            clock_t begin = clock(); /* of this process: others may share the core */
            tokens = 0;
            for (size_t at = 0; at < bytes; at += piece_sizes[i]) {
                size_t n = bytes - at < piece_sizes[i] ? bytes - at : piece_sizes[i], count;
                free(encode(t, text + at, n, 0, &count));
                tokens += count;
            }
            double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
            if (seconds < best) best = seconds;
        }
        printf("%zu bytes in pieces of %zu: %zu tokens, %.3f s, %.1f MB/s\n", bytes, piece_sizes[i], tokens, best,
               (double)bytes / best * 1e-6);
    }
    free(text);
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    gguf *file;
    tokenizer *t;
    if (gguf_open(argv[1], &file) != RS_OK) fail();
    double begin = clock_s();
    if (tokenizer_open(file, &t) != RS_OK) fail();
    double open_s = clock_s() - begin;
    if (strcmp(argv[2], "encode") == 0 && argc == 4) encode_records(t, (unsigned)atoi(argv[3]));
    if (strcmp(argv[2], "decode") == 0) decode_lines(t);
    if (strcmp(argv[2], "bench") == 0 && argc == 4) bench(t, argv[3]);
    if (strcmp(argv[2], "describe") == 0) {
        printf("%zu %d %d %zu %.3f\n", tokenizer_vocab(t), tokenizer_bos(t), tokenizer_eos(t), tokenizer_heap_bytes(t),
               open_s);
    }
    tokenizer_close(t);
    gguf_close(file);
    return 0;
}
