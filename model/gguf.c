/* gguf.c: maps a GGUF file and turns its header into checked views (format: ggml's docs/gguf.md). */
#include "model/gguf.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "values are read as the file stores them");

enum {
    VERSION_OLDEST = 2,
    VERSION_NEWEST = 3,
    KEY_BYTES_MAX = 65535,                /* the specification's limit */
    NAME_BYTES_MAX = 64,                  /* the specification's limit for tensor names */
    PAIRS_MAX = 1 << 16,                  /* files in use have below 100 */
    TENSORS_MAX = 1 << 20,                /* files in use have below 40,000 */
    PAIR_BYTES_MIN = 8 + 4 + 1,           /* key length, kind, a one-byte value */
    TENSOR_BYTES_MIN = 8 + 4 + 8 + 4 + 8, /* name length, dims, one dimension, type, offset */
    ALIGNMENT_DEFAULT = 32,
    ALIGNMENT_MIN = 8,       /* the specification's; also what float tensors need */
    ALIGNMENT_MAX = 1 << 20, /* more would only be padding */
    SHOWN_MAX = 72,          /* bytes of a name quoted in an error */
};

/* A scalar is kept as an array of one item. The key comes first, for `table`. */
typedef struct pair {
    str key;
    bool is_array;
    gguf_array value;
} pair;

/* Open addressing over items whose first member is their str. */
typedef struct table {
    const uint8_t *items;
    size_t item_bytes;
    uint32_t *slots; /* [mask + 1] index + 1 of an item, 0 when free; at most half are taken */
    size_t mask;
    uint64_t seed;
} table;

struct gguf {
    const uint8_t *data;
    size_t bytes;
    bool mapped;
    size_t heap_bytes;
    size_t n_pairs, n_tensors;
    pair *pairs;          /* [n_pairs] */
    gguf_tensor *tensors; /* [n_tensors] */
    table pair_table, tensor_table;
};

/* A position in the file; `name` says in errors which file. */
typedef struct reader {
    const char *name;
    const uint8_t *data;
    size_t bytes, at; /* at <= bytes */
} reader;

/* Bytes of an item; 0 for strings and arrays, whose size lies in the file. */
static const uint8_t kind_bytes[GGUF_KINDS] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,   [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
    [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

static const char *const kind_names[GGUF_KINDS] = {
    [GGUF_U8] = "u8",   [GGUF_I8] = "i8",   [GGUF_U16] = "u16",   [GGUF_I16] = "i16",       [GGUF_U32] = "u32",
    [GGUF_I32] = "i32", [GGUF_F32] = "f32", [GGUF_BOOL] = "bool", [GGUF_STRING] = "string", [GGUF_ARRAY] = "array",
    [GGUF_U64] = "u64", [GGUF_I64] = "i64", [GGUF_F64] = "f64",
};

/* ---- Reading ---- */

typedef struct shown {
    char text[SHOWN_MAX + 4];
} shown;

/* A name from the file as an error may print it: no control characters, bounded length. */
static shown show(str name) {
    shown s;
    size_t n = name.bytes < SHOWN_MAX ? name.bytes : SHOWN_MAX;
    for (size_t i = 0; i < n; i++) {
        uint8_t c = (uint8_t)name.data[i];
        s.text[i] = c >= 0x20 && c < 0x7F ? (char)c : '?';
    }
    snprintf(s.text + n, sizeof s.text - n, "%s", name.bytes > n ? "..." : "");
    return s;
}

/* Steps over `bytes` bytes of `what`; *place receives where they begin. */
static rs_status take(reader *r, uint64_t bytes, const char *what, const uint8_t **place) {
    size_t left = r->bytes - r->at;
    if (bytes > left) {
        return status_fail(RS_BAD_FORMAT,
                           "%s: the file is cut short or damaged: %s at byte %zu needs %" PRIu64
                           " bytes and %zu are left",
                           r->name, what, r->at, bytes, left);
    }
    *place = r->data + r->at;
    r->at += (size_t)bytes;
    return RS_OK;
}

static rs_status take_u32(reader *r, const char *what, uint32_t *value) {
    const uint8_t *place = NULL;
    RS_TRY(take(r, sizeof *value, what, &place));
    memcpy(value, place, sizeof *value);
    return RS_OK;
}

static rs_status take_u64(reader *r, const char *what, uint64_t *value) {
    const uint8_t *place = NULL;
    RS_TRY(take(r, sizeof *value, what, &place));
    memcpy(value, place, sizeof *value);
    return RS_OK;
}

static rs_status take_str(reader *r, const char *what, str *value) {
    uint64_t bytes;
    const uint8_t *place = NULL;
    RS_TRY(take_u64(r, what, &bytes));
    RS_TRY(take(r, bytes, what, &place));
    *value = (str){(const char *)place, (size_t)bytes};
    return RS_OK;
}

/* ---- Hashing ---- */

/* Multiply and fold, eight bytes at a time. */
static uint64_t hash(str key, uint64_t seed) {
    uint64_t h = seed ^ key.bytes;
    for (size_t i = 0; i < key.bytes; i += 8) {
        uint64_t word = 0;
        memcpy(&word, key.data + i, key.bytes - i < 8 ? key.bytes - i : 8);
        h = (h ^ word) * 0x9E3779B97F4A7C15u;
        h ^= h >> 32;
    }
    return h;
}

/* The slot that holds `key`, or the free one where it belongs. */
static uint32_t *slot_of(const table *t, str key) {
    for (size_t i = hash(key, t->seed);; i++) {
        uint32_t *slot = &t->slots[i & t->mask];
        if (*slot == 0) return slot;
        str present;
        memcpy(&present, t->items + (*slot - 1) * t->item_bytes, sizeof present);
        if (str_equal(present, key)) return slot;
    }
}

/* NULL when absent. */
static const void *table_find(const table *t, str key) {
    uint32_t slot = *slot_of(t, key);
    return slot == 0 ? NULL : t->items + (slot - 1) * t->item_bytes;
}

/* False when an item of the same name is there already. */
static bool table_add(table *t, str key, size_t index) {
    uint32_t *slot = slot_of(t, key);
    if (*slot != 0) return false;
    *slot = (uint32_t)index + 1;
    return true;
}

/* Takes zeroed memory for `count` items and their table. */
static rs_status table_open(gguf *file, table *t, size_t count, size_t item_bytes, void **items) {
    size_t slots = 2;
    while (slots < 2 * count) slots *= 2;
    *items = calloc(count + 1, item_bytes); /* one more, since calloc(0) may give NULL */
    /* The address is unknown to whoever wrote the file, so names cannot be made to collide on purpose. */
    *t = (table){*items, item_bytes, calloc(slots, sizeof *t->slots), slots - 1, (uint64_t)(uintptr_t)file};
    if (*items == NULL || t->slots == NULL) {
        return status_fail(RS_NO_MEMORY, "no memory for a model header of %zu entries", count);
    }
    file->heap_bytes += (count + 1) * item_bytes + slots * sizeof *t->slots;
    return RS_OK;
}

/* ---- Metadata ---- */

/* Steps over the items of `value`, whose kind and count are set, and sets where they begin. */
static rs_status read_items(reader *r, str key, gguf_array *value) {
    uint64_t bytes;
    uint8_t item_bytes = kind_bytes[value->kind];
    if (item_bytes > 0) {
        if (__builtin_mul_overflow(value->count, item_bytes, &bytes)) bytes = UINT64_MAX;
        RS_TRY(take(r, bytes, "a metadata value", &value->data));
    } else {
        value->data = r->data + r->at;
        str item;
        for (uint64_t i = 0; i < value->count; i++) RS_TRY(take_str(r, "a metadata string", &item));
    }
    if (value->kind != GGUF_BOOL) return RS_OK;
    for (uint64_t i = 0; i < value->count; i++) {
        if (value->data[i] > 1) {
            return status_fail(RS_BAD_FORMAT, "%s: key '%s' holds the bool %u, which is neither 0 nor 1", r->name,
                               show(key).text, value->data[i]);
        }
    }
    return RS_OK;
}

static rs_status read_kind(reader *r, str key, gguf_kind *kind) {
    uint32_t number;
    RS_TRY(take_u32(r, "a metadata type", &number));
    if (number >= GGUF_KINDS) {
        return status_fail(RS_BAD_FORMAT, "%s: key '%s' has metadata type %u; types are 0 to %d", r->name,
                           show(key).text, number, GGUF_KINDS - 1);
    }
    *kind = (gguf_kind)number;
    return RS_OK;
}

static rs_status read_pair(reader *r, pair *p) {
    RS_TRY(take_str(r, "a metadata key", &p->key));
    if (p->key.bytes == 0 || p->key.bytes > KEY_BYTES_MAX) {
        return status_fail(RS_BAD_FORMAT, "%s: a metadata key is %zu bytes long; 1 to %d are allowed", r->name,
                           p->key.bytes, KEY_BYTES_MAX);
    }
    p->value.count = 1;
    RS_TRY(read_kind(r, p->key, &p->value.kind));
    if (p->value.kind == GGUF_ARRAY) {
        p->is_array = true;
        RS_TRY(read_kind(r, p->key, &p->value.kind));
        if (p->value.kind == GGUF_ARRAY) {
            return status_fail(RS_UNSUPPORTED, "%s: key '%s' is an array of arrays, which is not supported", r->name,
                               show(p->key).text);
        }
        RS_TRY(take_u64(r, "an array length", &p->value.count));
    }
    return read_items(r, p->key, &p->value);
}

static rs_status read_pairs(reader *r, gguf *file) {
    for (size_t i = 0; i < file->n_pairs; i++) {
        pair *p = &file->pairs[i];
        RS_TRY(read_pair(r, p));
        if (!table_add(&file->pair_table, p->key, i)) {
            return status_fail(RS_BAD_FORMAT, "%s: key '%s' appears twice", r->name, show(p->key).text);
        }
    }
    return RS_OK;
}

/* ---- Tensors ---- */

/* Checks shape and type and computes the bytes. */
static rs_status measure_tensor(const reader *r, gguf_tensor *t, uint32_t type) {
    format_info info = format_describe(type);
    if (info.name == NULL) {
        return status_fail(
            RS_UNSUPPORTED,
            "%s: tensor '%s' has type number %u, which is not supported; use a file of another quantisation", r->name,
            show(t->name).text, type);
    }
    t->format = (format)type;
    uint64_t values = 1;
    for (uint32_t i = 0; i < t->dims; i++) {
        if (t->shape[i] == 0 || __builtin_mul_overflow(values, t->shape[i], &values)) {
            return status_fail(RS_BAD_FORMAT, "%s: tensor '%s' has dimension %u of size %" PRIu64 ", which is %s",
                               r->name, show(t->name).text, i, t->shape[i], t->shape[i] == 0 ? "empty" : "too large");
        }
    }
    if (t->shape[0] % info.block_values != 0) {
        return status_fail(RS_BAD_FORMAT,
                           "%s: tensor '%s' has rows of %" PRIu64 " values, no multiple of %s's block of %u", r->name,
                           show(t->name).text, t->shape[0], info.name, info.block_values);
    }
    if (__builtin_mul_overflow(values / info.block_values, info.block_bytes, &t->bytes)) t->bytes = UINT64_MAX;
    return RS_OK;
}

/* Reads one description; t->data receives no address yet but *offset the distance from where the data begins. */
static rs_status read_tensor(reader *r, gguf_tensor *t, uint64_t *offset) {
    uint32_t type;
    RS_TRY(take_str(r, "a tensor name", &t->name));
    if (t->name.bytes == 0 || t->name.bytes > NAME_BYTES_MAX) {
        return status_fail(RS_BAD_FORMAT, "%s: a tensor name is %zu bytes long; 1 to %d are allowed", r->name,
                           t->name.bytes, NAME_BYTES_MAX);
    }
    RS_TRY(take_u32(r, "a number of dimensions", &t->dims));
    if (t->dims == 0 || t->dims > GGUF_DIMS_MAX) {
        return status_fail(RS_BAD_FORMAT, "%s: tensor '%s' has %u dimensions; 1 to %d are allowed", r->name,
                           show(t->name).text, t->dims, GGUF_DIMS_MAX);
    }
    for (uint32_t i = 0; i < GGUF_DIMS_MAX; i++) {
        t->shape[i] = 1;
        if (i < t->dims) RS_TRY(take_u64(r, "a tensor shape", &t->shape[i]));
    }
    RS_TRY(take_u32(r, "a tensor type", &type));
    RS_TRY(take_u64(r, "a tensor offset", offset));
    return measure_tensor(r, t, type);
}

/* Where the data begins is known only after the last description, so offsets wait in `offsets` [n_tensors]. */
static rs_status read_tensors(reader *r, gguf *file, uint64_t alignment, uint64_t *offsets) {
    for (size_t i = 0; i < file->n_tensors; i++) {
        gguf_tensor *t = &file->tensors[i];
        RS_TRY(read_tensor(r, t, &offsets[i]));
        if (!table_add(&file->tensor_table, t->name, i)) {
            return status_fail(RS_BAD_FORMAT, "%s: tensor '%s' appears twice", r->name, show(t->name).text);
        }
    }
    /* No overflow: a mapping is far shorter than SIZE_MAX - ALIGNMENT_MAX. */
    size_t begin = (r->at + alignment - 1) & ~(size_t)(alignment - 1);
    size_t room = begin < r->bytes ? r->bytes - begin : 0;
    for (size_t i = 0; i < file->n_tensors; i++) {
        gguf_tensor *t = &file->tensors[i];
        if (offsets[i] % alignment != 0) {
            return status_fail(RS_BAD_FORMAT,
                               "%s: tensor '%s' lies at offset %" PRIu64 ", no multiple of the alignment %" PRIu64,
                               r->name, show(t->name).text, offsets[i], alignment);
        }
        if (offsets[i] > room || t->bytes > room - offsets[i]) {
            return status_fail(RS_BAD_FORMAT,
                               "%s: the file is cut short or damaged: tensor '%s' needs %" PRIu64
                               " bytes at offset %" PRIu64 " of the tensor data, which has %zu bytes",
                               r->name, show(t->name).text, t->bytes, offsets[i], room);
        }
        t->data = r->data + begin + offsets[i];
    }
    return RS_OK;
}

/* ---- The whole header ---- */

static rs_status read_version(reader *r) {
    const uint8_t *magic = NULL;
    uint32_t version;
    RS_TRY(take(r, 4, "the magic number", &magic));
    if (memcmp(magic, "FUGG", 4) == 0) {
        return status_fail(RS_UNSUPPORTED, "%s: a big-endian GGUF file; only little-endian ones are read", r->name);
    }
    if (memcmp(magic, "GGUF", 4) != 0) {
        return status_fail(RS_BAD_FORMAT, "%s: not a GGUF file: it begins with %02x %02x %02x %02x", r->name, magic[0],
                           magic[1], magic[2], magic[3]);
    }
    RS_TRY(take_u32(r, "the version", &version));
    if (version != 0 && (version & 0xFFFF) == 0) {
        return status_fail(RS_UNSUPPORTED, "%s: a big-endian GGUF file; only little-endian ones are read", r->name);
    }
    if (version < VERSION_OLDEST || version > VERSION_NEWEST) {
        return status_fail(RS_UNSUPPORTED, "%s: GGUF version %u; versions %d and %d are read", r->name, version,
                           VERSION_OLDEST, VERSION_NEWEST);
    }
    return RS_OK;
}

/* A count of entries that each take at least `bytes_min` bytes of the file. */
static rs_status read_count(reader *r, const char *what, size_t bytes_min, size_t most, size_t *count) {
    uint64_t value;
    RS_TRY(take_u64(r, what, &value));
    if (value > most || value > r->bytes / bytes_min) {
        return status_fail(RS_BAD_FORMAT,
                           "%s: %s is %" PRIu64 ", more than a file of %zu bytes can hold or the %zu allowed", r->name,
                           what, value, r->bytes, most);
    }
    *count = (size_t)value;
    return RS_OK;
}

static rs_status read_alignment(const reader *r, const gguf *file, uint64_t *alignment) {
    *alignment = ALIGNMENT_DEFAULT;
    RS_TRY(gguf_get_uint(file, "general.alignment", alignment));
    if (*alignment < ALIGNMENT_MIN || *alignment > ALIGNMENT_MAX || (*alignment & (*alignment - 1)) != 0) {
        return status_fail(RS_BAD_FORMAT,
                           "%s: general.alignment is %" PRIu64 "; it must be a power of two from %d to %d", r->name,
                           *alignment, ALIGNMENT_MIN, ALIGNMENT_MAX);
    }
    return RS_OK;
}

static rs_status read_header(reader *r, gguf *file) {
    RS_TRY(read_version(r));
    RS_TRY(read_count(r, "the number of tensors", TENSOR_BYTES_MIN, TENSORS_MAX, &file->n_tensors));
    RS_TRY(read_count(r, "the number of metadata keys", PAIR_BYTES_MIN, PAIRS_MAX, &file->n_pairs));
    void *items;
    rs_status status = table_open(file, &file->pair_table, file->n_pairs, sizeof(pair), &items);
    file->pairs = items;
    if (status == RS_OK) {
        status = table_open(file, &file->tensor_table, file->n_tensors, sizeof(gguf_tensor), &items);
        file->tensors = items;
    }
    RS_TRY(status);
    RS_TRY(read_pairs(r, file));
    uint64_t alignment;
    RS_TRY(read_alignment(r, file, &alignment));
    uint64_t *offsets = calloc(file->n_tensors + 1, sizeof *offsets);
    if (offsets == NULL) return status_fail(RS_NO_MEMORY, "no memory for %zu tensor offsets", file->n_tensors);
    status = read_tensors(r, file, alignment, offsets);
    free(offsets);
    return status;
}

/* On failure the mapping stays the caller's. */
static rs_status parse(const char *name, const uint8_t *data, size_t bytes, bool mapped, gguf **out) {
    gguf *file = calloc(1, sizeof *file);
    if (file == NULL) return status_fail(RS_NO_MEMORY, "no memory for a model header");
    *file = (gguf){.data = data, .bytes = bytes, .heap_bytes = sizeof *file};
    reader r = {name, data, bytes, 0};
    rs_status status = read_header(&r, file);
    if (status != RS_OK) {
        gguf_close(file);
        return status;
    }
    file->mapped = mapped;
    *out = file;
    return RS_OK;
}

rs_status gguf_parse(const uint8_t *data, size_t bytes, gguf **out) {
    return parse("GGUF data", data, bytes, false, out);
}

rs_status gguf_adopt(uint8_t *data, size_t bytes, gguf **out) {
    rs_status status = parse("the model sent", data, bytes, true, out);
    if (status != RS_OK) munmap(data, bytes);
    return status;
}

rs_status gguf_open(const char *path, gguf **out) {
    rs_status status;
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* does not wait for the writer of a named pipe */
    if (fd < 0) return status_fail(RS_IO, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &info) != 0) {
        status = status_fail(RS_IO, "cannot examine %s: %s", path, strerror(errno));
        goto close_fd;
    }
    if (!S_ISREG(info.st_mode)) {
        status = status_fail(RS_IO, "%s is not a regular file", path);
        goto close_fd;
    }
    if (info.st_size == 0) {
        status = status_fail(RS_BAD_FORMAT, "%s: the file is empty", path);
        goto close_fd;
    }
    size_t bytes = (size_t)info.st_size;
    void *data = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) {
        status = status_fail(RS_IO, "cannot map the %zu bytes of %s: %s", bytes, path, strerror(errno));
        goto close_fd;
    }
    status = parse(path, data, bytes, true, out);
    if (status != RS_OK) munmap(data, bytes);
close_fd:
    close(fd);
    return status;
}

void gguf_close(gguf *file) {
    if (file == NULL) return;
    free(file->pair_table.slots);
    free(file->tensor_table.slots);
    free(file->pairs);
    free(file->tensors);
    if (file->mapped) munmap((void *)file->data, file->bytes);
    free(file);
}

void gguf_forget(const gguf *file, const uint8_t *data, size_t bytes) {
    if (!file->mapped) return;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t begin = ((size_t)(data - file->data) + page - 1) / page * page;
    size_t end = ((size_t)(data - file->data) + bytes) / page * page;
    if (begin < end) madvise((void *)(file->data + begin), end - begin, MADV_DONTNEED);
}

/* ---- What was read ---- */

size_t gguf_file_bytes(const gguf *file) {
    return file->bytes;
}

const uint8_t *gguf_data(const gguf *file) {
    return file->data;
}

size_t gguf_heap_bytes(const gguf *file) {
    return file->heap_bytes;
}

size_t gguf_tensor_count(const gguf *file) {
    return file->n_tensors;
}

const gguf_tensor *gguf_tensor_at(const gguf *file, size_t index) {
    assert(index < file->n_tensors);
    return &file->tensors[index];
}

const gguf_tensor *gguf_tensor_find(const gguf *file, const char *name) {
    return table_find(&file->tensor_table, str_of(name));
}

bool gguf_has(const gguf *file, const char *key) {
    return table_find(&file->pair_table, str_of(key)) != NULL;
}

static bool is_integer(gguf_kind kind) {
    return kind_bytes[kind] > 0 && kind != GGUF_F32 && kind != GGUF_F64 && kind != GGUF_BOOL;
}

static rs_status wrong_kind(const char *key, const pair *p, const char *wanted) {
    return status_fail(RS_BAD_FORMAT, "metadata key '%s' should be %s and is %s%s", key, wanted,
                       p->is_array ? "an array of " : "of type ", kind_names[p->value.kind]);
}

rs_status gguf_get_uint(const gguf *file, const char *key, uint64_t *value) {
    const pair *p = table_find(&file->pair_table, str_of(key));
    if (p == NULL) return RS_OK;
    if (p->is_array || !is_integer(p->value.kind)) return wrong_kind(key, p, "an integer");
    if (p->value.kind == GGUF_U64) {
        memcpy(value, p->value.data, sizeof *value);
        return RS_OK;
    }
    int64_t number = gguf_array_int(&p->value, 0);
    if (number < 0) {
        return status_fail(RS_BAD_FORMAT, "metadata key '%s' is %" PRId64 " and must not be negative", key, number);
    }
    *value = (uint64_t)number;
    return RS_OK;
}

rs_status gguf_get_int(const gguf *file, const char *key, int64_t *value) {
    const pair *p = table_find(&file->pair_table, str_of(key));
    if (p == NULL) return RS_OK;
    if (p->is_array || !is_integer(p->value.kind)) return wrong_kind(key, p, "an integer");
    uint64_t number = 0;
    if (p->value.kind == GGUF_U64) memcpy(&number, p->value.data, sizeof number);
    if (number > INT64_MAX) {
        return status_fail(RS_BAD_FORMAT, "metadata key '%s' is %" PRIu64 ", above the largest signed integer", key,
                           number);
    }
    *value = gguf_array_int(&p->value, 0);
    return RS_OK;
}

rs_status gguf_get_float(const gguf *file, const char *key, float *value) {
    const pair *p = table_find(&file->pair_table, str_of(key));
    if (p == NULL) return RS_OK;
    if (p->is_array || (p->value.kind != GGUF_F32 && p->value.kind != GGUF_F64)) {
        return wrong_kind(key, p, "a floating-point number");
    }
    *value = gguf_array_float(&p->value, 0);
    return RS_OK;
}

rs_status gguf_get_bool(const gguf *file, const char *key, bool *value) {
    const pair *p = table_find(&file->pair_table, str_of(key));
    if (p == NULL) return RS_OK;
    if (p->is_array || p->value.kind != GGUF_BOOL) return wrong_kind(key, p, "a bool");
    *value = *p->value.data == 1;
    return RS_OK;
}

rs_status gguf_get_str(const gguf *file, const char *key, str *value) {
    const pair *p = table_find(&file->pair_table, str_of(key));
    if (p == NULL) return RS_OK;
    if (p->is_array || p->value.kind != GGUF_STRING) return wrong_kind(key, p, "a string");
    gguf_array_strings(&p->value, value);
    return RS_OK;
}

rs_status gguf_get_array(const gguf *file, const char *key, gguf_array *value) {
    const pair *p = table_find(&file->pair_table, str_of(key));
    if (p == NULL) return RS_OK;
    if (!p->is_array) return wrong_kind(key, p, "an array");
    *value = p->value;
    return RS_OK;
}

int64_t gguf_array_int(const gguf_array *array, uint64_t index) {
    assert(index < array->count && (is_integer(array->kind) || array->kind == GGUF_BOOL));
    size_t item_bytes = kind_bytes[array->kind];
    uint64_t bits = 0;
    memcpy(&bits, array->data + index * item_bytes, item_bytes);
    switch (array->kind) {
    case GGUF_I8:
        return (int8_t)bits;
    case GGUF_I16:
        return (int16_t)bits;
    case GGUF_I32:
        return (int32_t)bits;
    case GGUF_I64:
        return (int64_t)bits;
    default:
        return bits > INT64_MAX ? INT64_MAX : (int64_t)bits;
    }
}

float gguf_array_float(const gguf_array *array, uint64_t index) {
    assert(index < array->count && (array->kind == GGUF_F32 || array->kind == GGUF_F64));
    if (array->kind == GGUF_F32) {
        float value;
        memcpy(&value, array->data + index * sizeof value, sizeof value);
        return value;
    }
    double value;
    memcpy(&value, array->data + index * sizeof value, sizeof value);
    return (float)value;
}

void gguf_array_strings(const gguf_array *array, str *out) {
    assert(array->kind == GGUF_STRING);
    const uint8_t *place = array->data;
    for (uint64_t i = 0; i < array->count; i++) {
        uint64_t bytes;
        memcpy(&bytes, place, sizeof bytes);
        out[i] = (str){(const char *)place + sizeof bytes, (size_t)bytes};
        place += sizeof bytes + bytes;
    }
}
