/* fuzz_gguf.c: any bytes as a GGUF file; all that is accepted is walked through the public interface. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "model/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Where results go, so that no read is optimised away. */
static volatile uint64_t sink;

/* Asks for every kind of value under one key and reads what is given. */
static void touch_key(const gguf *file, const char *key) {
    uint64_t natural = 0;
    int64_t integer = 0;
    float number = 0;
    bool flag = false;
    str text = {0};
    gguf_array array = {0};
    gguf_get_uint(file, key, &natural);
    gguf_get_int(file, key, &integer);
    gguf_get_float(file, key, &number);
    gguf_get_bool(file, key, &flag);
    if (gguf_get_str(file, key, &text) == RS_OK && text.bytes > 0) {
        sink += (uint8_t)text.data[0] + (uint8_t)text.data[text.bytes - 1];
    }
    sink += natural + (uint64_t)integer + (uint64_t)(number > 0) + flag;
    if (gguf_get_array(file, key, &array) != RS_OK || array.count == 0) return;
    if (array.kind == GGUF_STRING) {
        str *strings = calloc(array.count, sizeof *strings);
        if (strings == NULL) return;
        gguf_array_strings(&array, strings);
        for (uint64_t i = 0; i < array.count; i++) {
            if (strings[i].bytes > 0) sink += (uint8_t)strings[i].data[strings[i].bytes - 1];
        }
        free(strings);
    } else if (array.kind == GGUF_F32 || array.kind == GGUF_F64) {
        for (uint64_t i = 0; i < array.count; i++) sink += (uint64_t)(gguf_array_float(&array, i) > 0);
    } else {
        for (uint64_t i = 0; i < array.count; i++) sink += (uint64_t)gguf_array_int(&array, i);
    }
}

/* The interface lists no keys, so every 1 to 32 bytes that follow what could be their length are tried as one. */
static void touch_keys(const gguf *file, const uint8_t *data, size_t bytes) {
    for (size_t i = 0; i + 8 < bytes; i++) {
        uint64_t length;
        char key[33];
        memcpy(&length, data + i, sizeof length);
        if (length == 0 || length > 32 || length > bytes - i - 8) continue;
        memcpy(key, data + i + 8, length);
        key[length] = 0;
        if (gguf_has(file, key)) touch_key(file, key);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    gguf *file;
    if (gguf_parse(data, bytes, &file) != RS_OK) {
        assert(strlen(rs_last_error()) > 10);
        return 0;
    }
    touch_keys(file, data, bytes);
    touch_key(file, "general.alignment");
    for (size_t i = 0; i < gguf_tensor_count(file); i++) {
        const gguf_tensor *t = gguf_tensor_at(file, i);
        uint64_t values = 1;
        for (uint32_t d = 0; d < GGUF_DIMS_MAX; d++) values *= t->shape[d];
        assert(t->bytes > 0 && t->bytes == format_bytes(t->format, values));
        sink += t->data[0] + t->data[t->bytes - 1];
        char name[65] = {0};
        memcpy(name, t->name.data, t->name.bytes);
        if (strlen(name) == t->name.bytes) assert(gguf_tensor_find(file, name) == t);
    }
    assert(gguf_heap_bytes(file) < 4096 + 16 * bytes);
    gguf_close(file);
    return 0;
}
