/* arena.c: mapped, prefaulted blocks of memory. */
#include "base/arena.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    PIECE_BYTES = 2 << 20, /* a huge page */
    TOUCH_BYTES = 4096     /* the smallest page there is */
};

size_t size_mul(size_t a, size_t b) {
    size_t product;
    return __builtin_mul_overflow(a, b, &product) ? SIZE_MAX : product;
}

size_t size_add(size_t a, size_t b) {
    size_t sum;
    return __builtin_add_overflow(a, b, &sum) ? SIZE_MAX : sum;
}

void *arena_take(arena *a, size_t count, size_t item_bytes) {
    size_t bytes = size_mul(count, item_bytes);
    size_t padded = size_add(bytes, ARENA_ALIGN - 1);
    size_t end = padded == SIZE_MAX ? SIZE_MAX : size_add(a->used, padded / ARENA_ALIGN * ARENA_ALIGN);
    void *place = NULL;
    if (a->base != NULL) {
        assert(end <= a->size);
        place = a->base + a->used;
    }
    a->used = end;
    return place;
}

/* Maps `bytes` from an address that huge pages can begin at: what lies before and behind is given back. */
static void *map_aligned(size_t bytes) {
    size_t all = bytes + PIECE_BYTES;
    uint8_t *map = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return NULL;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t before = (PIECE_BYTES - (uintptr_t)map % PIECE_BYTES) % PIECE_BYTES;
    size_t end = (before + bytes + page - 1) / page * page;
    if (before > 0) munmap(map, before);
    if (end < all) munmap(map + end, all - end);
    return map + before;
}

rs_status arena_reserve(arena *a, size_t bytes) {
    *a = (arena){0};
    if (bytes == 0) return RS_OK;
    if (bytes > (size_t)PTRDIFF_MAX - PIECE_BYTES)
        return status_fail(RS_NO_MEMORY, "memory request overflows the address space");
    void *base = map_aligned(bytes);
    if (base == NULL) return status_fail(RS_NO_MEMORY, "cannot map %zu bytes of memory: %s", bytes, strerror(errno));
    madvise(base, bytes, MADV_HUGEPAGE); /* only a hint: fewer TLB misses while KV pages stream */
    *a = (arena){base, 0, bytes};
    return RS_OK;
}

size_t arena_pieces(const arena *a) {
    return (a->size + PIECE_BYTES - 1) / PIECE_BYTES;
}

void arena_touch(const arena *a, size_t piece) {
    size_t end = size_min((piece + 1) * PIECE_BYTES, a->size);
    for (size_t at = piece * PIECE_BYTES; at < end; at += TOUCH_BYTES) *(volatile uint8_t *)(a->base + at) = 0;
}

rs_status arena_map(arena *a, size_t bytes) {
    RS_TRY(arena_reserve(a, bytes));
    for (size_t piece = 0; piece < arena_pieces(a); piece++) arena_touch(a, piece);
    return RS_OK;
}

void arena_unmap(arena *a) {
    if (a->base != NULL) munmap(a->base, a->size);
    *a = (arena){0};
}
