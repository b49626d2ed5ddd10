/* budget.c: reads memory figures from /proc and /sys/fs/cgroup. */
#include "plan/budget.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { RESERVE_PARTS = 32 };

/* The number after `name` in a file of "name number" lines, such as /proc/meminfo (there in kB); 0 when absent. */
static uint64_t number_after(const char *path, const char *name) {
    FILE *file = fopen(path, "r");
    if (file == NULL) return 0;
    char line[256];
    uint64_t value = 0;
    size_t length = strlen(name);
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, name, length) == 0 && sscanf(line + length, " %" SCNu64, &value) == 1) break;
    }
    fclose(file);
    return value;
}

/* Resident bytes of the mappings that begin inside [begin, begin + bytes). */
static uint64_t resident_in(const void *begin, size_t bytes) {
    FILE *file = fopen("/proc/self/smaps", "r");
    if (file == NULL) return 0;
    char line[512];
    uint64_t sum = 0, kilobytes;
    bool inside = false;
    while (fgets(line, sizeof line, file) != NULL) {
        uint64_t low, high;
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &low, &high) == 2) {
            inside = low >= (uintptr_t)begin && low < (uintptr_t)begin + bytes;
        } else if (inside && sscanf(line, "Rss: %" SCNu64, &kilobytes) == 1) {
            sum += kilobytes * 1024;
        }
    }
    fclose(file);
    return sum;
}

uint64_t budget_resident(const void *skip, size_t skip_bytes) {
    uint64_t all = 1024 * number_after("/proc/self/status", "VmRSS:"), skipped = resident_in(skip, skip_bytes);
    return all > skipped ? all - skipped : 0;
}

/* A file that holds one number; UINT64_MAX when absent or "max". */
static uint64_t number_in(const char *path) {
    FILE *file = fopen(path, "r");
    uint64_t value;
    if (file == NULL) return UINT64_MAX;
    if (fscanf(file, "%" SCNu64, &value) != 1) value = UINT64_MAX;
    fclose(file);
    return value;
}

/* What a cgroup still has to give, its file cache (which the kernel takes back) included; UINT64_MAX without a limit.
 */
static uint64_t cgroup_free(const char *limit_path, const char *usage_path, const char *stat_path, const char *inactive,
                            const char *active) {
    uint64_t limit = number_in(limit_path), usage = number_in(usage_path);
    if (limit == UINT64_MAX || usage == UINT64_MAX) return UINT64_MAX;
    uint64_t cache = number_after(stat_path, inactive) + number_after(stat_path, active);
    usage = usage > cache ? usage - cache : 0;
    return limit > usage ? limit - usage : 0;
}

uint64_t budget_limit(void) {
    uint64_t free_bytes = 1024 * number_after("/proc/meminfo", "MemAvailable:");
    uint64_t v2 = cgroup_free("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current",
                              "/sys/fs/cgroup/memory.stat", "inactive_file ", "active_file ");
    uint64_t v1 =
        cgroup_free("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                    "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file ", "total_active_file ");
    if (v2 < free_bytes) free_bytes = v2;
    if (v1 < free_bytes) free_bytes = v1;
    return 1024 * number_after("/proc/self/status", "VmRSS:") + free_bytes - free_bytes / RESERVE_PARTS;
}
