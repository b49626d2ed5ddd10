/* arena.h: one block of memory per lifetime, placed by the same code that measures it.
 *
 * x_layout(arena, ...) calls arena_take for each buffer. On an arena whose base is NULL that only adds up; on a mapped
 * one it places. So the bytes of a plan are the bytes of the allocator. */
#ifndef RS_BASE_ARENA_H
#define RS_BASE_ARENA_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { ARENA_ALIGN = 64 };

typedef struct arena {
    uint8_t *base; /* NULL: measure only */
    size_t used;   /* bytes taken; SIZE_MAX after an overflow */
    size_t size;   /* bytes mapped */
} arena;

/* Takes count * item_bytes, aligned to ARENA_ALIGN. NULL while measuring. A real arena is always exactly as large as
 * the walk that measured it, so running out is a defect and asserted. */
void *arena_take(arena *a, size_t count, size_t item_bytes);

/* Maps `bytes` (as measured) of zeroed memory and touches every page, so that what was granted cannot fail later.
 * RS_NO_MEMORY. */
rs_status arena_map(arena *a, size_t bytes);
void arena_unmap(arena *a);

/* arena_map in two steps, for memory that other threads are to touch: a page comes to lie in the NUMA node of the one
 * that touches it first, as long as that node has room. Touch each of [0, arena_pieces) once, from any thread, before
 * anything is written: it zeroes. */
rs_status arena_reserve(arena *a, size_t bytes);
size_t arena_pieces(const arena *a);
void arena_touch(const arena *a, size_t piece);

/* a * b and a + b with SIZE_MAX instead of overflow. */
size_t size_mul(size_t a, size_t b);
size_t size_add(size_t a, size_t b);

static inline size_t size_min(size_t a, size_t b) {
    return a < b ? a : b;
}

static inline size_t size_max(size_t a, size_t b) {
    return a > b ? a : b;
}

#endif
