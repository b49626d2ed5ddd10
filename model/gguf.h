/* gguf.h: a hardened reader of GGUF files, versions 2 and 3, little endian (format: ggml's docs/gguf.md).
 *
 * The file is mapped; strings, arrays and tensors are views into the mapping and live until gguf_close. Every length,
 * count, offset, type, alignment, nesting and product is checked before use: hostile files give RS_BAD_FORMAT (or
 * RS_UNSUPPORTED for versions, byte order, types and nested arrays not known here) with one clear sentence. */
#ifndef RS_MODEL_GGUF_H
#define RS_MODEL_GGUF_H

#include "base/text.h"
#include "math/format.h"
#include "ringspan.h"

enum { GGUF_DIMS_MAX = 4 };

typedef struct gguf gguf;

typedef struct gguf_tensor {
    str name;
    uint64_t shape[GGUF_DIMS_MAX]; /* fastest first as in the file, 1 beyond `dims` */
    uint32_t dims;
    format format;
    const uint8_t *data;
    uint64_t bytes;
} gguf_tensor;

/* Value types of metadata, by their numbers in the file. */
typedef enum gguf_kind {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY,
    GGUF_U64, GGUF_I64, GGUF_F64, GGUF_KINDS
} gguf_kind;

typedef struct gguf_array {
    gguf_kind kind; /* of the items; never GGUF_ARRAY */
    uint64_t count;
    const uint8_t *data;
} gguf_array;

/* Maps and checks the whole header. Tensor data itself is not read. */
rs_status gguf_open(const char *path, gguf **out);

/* The same over bytes the caller owns and keeps (tests, fuzzing). */
rs_status gguf_parse(const uint8_t *data, size_t bytes, gguf **out);

/* The same over a mapping that it takes over, also on failure, and unmaps in the end. */
rs_status gguf_adopt(uint8_t *data, size_t bytes, gguf **out);
void gguf_close(gguf *file);

size_t gguf_file_bytes(const gguf *file);
const uint8_t *gguf_data(const gguf *file);   /* the mapping */

/* These bytes of the mapping need not stay in memory; what is read of them again comes from the file again. Nothing
 * happens to bytes that the caller owns. */
void gguf_forget(const gguf *file, const uint8_t *data, size_t bytes);
size_t gguf_heap_bytes(const gguf *file);     /* memory the reader itself took */

size_t gguf_tensor_count(const gguf *file);
const gguf_tensor *gguf_tensor_at(const gguf *file, size_t index);
const gguf_tensor *gguf_tensor_find(const gguf *file, const char *name); /* NULL when absent; hashed */

/* Metadata by key. An absent key leaves *value as it was (set the default before) and is RS_OK; a value of another kind
 * than asked (any integer kind in range serves for an integer) is RS_BAD_FORMAT. */
bool gguf_has(const gguf *file, const char *key);
rs_status gguf_get_uint(const gguf *file, const char *key, uint64_t *value);
rs_status gguf_get_int(const gguf *file, const char *key, int64_t *value);
rs_status gguf_get_float(const gguf *file, const char *key, float *value); /* F32 or F64 */
rs_status gguf_get_bool(const gguf *file, const char *key, bool *value);
rs_status gguf_get_str(const gguf *file, const char *key, str *value);
rs_status gguf_get_array(const gguf *file, const char *key, gguf_array *value);

/* Item `index` of an integer, bool or float array (asserted in range). */
int64_t gguf_array_int(const gguf_array *array, uint64_t index);
float gguf_array_float(const gguf_array *array, uint64_t index);

/* All strings of a string array in one walk: out [count]. */
void gguf_array_strings(const gguf_array *array, str *out);

#endif
