/* partial.c: hashes a model, and walks and rebuilds what of it every rank needs. */
#include "model/partial.h"

#include <errno.h>
#include <sodium.h>
#include <string.h>
#include <sys/mman.h>

enum { SAMPLE_BYTES = 4096 /* of each end of a tensor */ };

/* Bytes before the first tensor's data. */
static uint64_t header_bytes(const gguf *file) {
    uint64_t least = gguf_file_bytes(file);
    for (size_t i = 0; i < gguf_tensor_count(file); i++) {
        uint64_t offset = (uint64_t)(gguf_tensor_at(file, i)->data - gguf_data(file));
        if (offset < least) least = offset;
    }
    return least;
}

void model_hash(const rs_model *m, char out[MODEL_HASH_TEXT]) {
    const gguf *file = m->file;
    crypto_generichash_state state;
    uint8_t digest[MODEL_HASH_BYTES];
    uint64_t bytes = gguf_file_bytes(file);
    crypto_generichash_init(&state, NULL, 0, sizeof digest);
    crypto_generichash_update(&state, (const uint8_t *)&bytes, sizeof bytes);
    crypto_generichash_update(&state, gguf_data(file), header_bytes(file));
    for (size_t i = 0; i < gguf_tensor_count(file); i++) {
        const gguf_tensor *t = gguf_tensor_at(file, i);
        size_t sample = t->bytes < SAMPLE_BYTES ? t->bytes : SAMPLE_BYTES;
        crypto_generichash_update(&state, t->data, sample);
        crypto_generichash_update(&state, t->data + t->bytes - sample, sample);
    }
    crypto_generichash_final(&state, digest, sizeof digest);
    sodium_bin2hex(out, MODEL_HASH_TEXT, digest, sizeof digest);
}

static rs_status walk_run(const gguf *file, const uint8_t *begin, uint64_t bytes, size_t piece_max, partial_each each,
                          void *user) {
    for (uint64_t done = 0; done < bytes;) {
        size_t piece = bytes - done < piece_max ? bytes - done : piece_max;
        RS_TRY(each(user, (uint64_t)(begin - gguf_data(file)) + done, begin + done, piece));
        done += piece;
    }
    return RS_OK;
}

rs_status partial_walk(const rs_model *m, size_t piece_max, partial_each each, void *user) {
    const gguf *file = m->file;
    RS_TRY(walk_run(file, gguf_data(file), header_bytes(file), piece_max, each, user));
    for (size_t i = 0; i < gguf_tensor_count(file); i++) {
        const gguf_tensor *t = gguf_tensor_at(file, i);
        if (t->dims > 1 && t->data != m->w.embedding.data) continue;
        RS_TRY(walk_run(file, t->data, t->bytes, piece_max, each, user));
    }
    return RS_OK;
}

rs_status partial_map(uint64_t file_bytes, uint8_t **out) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *data = file_bytes <= SIZE_MAX / 2 ? mmap(NULL, file_bytes, PROT_READ | PROT_WRITE, flags, -1, 0) : MAP_FAILED;
    if (data == MAP_FAILED) {
        return status_fail(RS_NO_MEMORY, "cannot map %llu bytes for a model: %s", (unsigned long long)file_bytes,
                           strerror(errno));
    }
    *out = data;
    return RS_OK;
}

void partial_unmap(uint8_t *data, uint64_t file_bytes) {
    munmap(data, file_bytes);
}
