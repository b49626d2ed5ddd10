/* arena.c: mapped, prefaulted blocks of memory. */
#include "base/arena.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

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

rs_status arena_map(arena *a, size_t bytes) {
    *a = (arena){0};
    if (bytes == 0) return RS_OK;
    if (bytes > (size_t)PTRDIFF_MAX) return status_fail(RS_NO_MEMORY, "memory request overflows the address space");
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return status_fail(RS_NO_MEMORY, "cannot map %zu bytes of memory: %s", bytes, strerror(errno));
    }
    madvise(base, bytes, MADV_HUGEPAGE); /* only a hint: fewer TLB misses while KV pages stream */
    memset(base, 0, bytes);
    *a = (arena){base, 0, bytes};
    return RS_OK;
}

void arena_unmap(arena *a) {
    if (a->base != NULL) munmap(a->base, a->size);
    *a = (arena){0};
}
