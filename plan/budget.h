/* budget.h: what memory this process has and may have. */
#ifndef RS_PLAN_BUDGET_H
#define RS_PLAN_BUDGET_H

#include <stddef.h>
#include <stdint.h>

/* Resident bytes of this process, without the mapping [skip, skip + skip_bytes) (a model file, planned apart). */
uint64_t budget_resident(const void *skip, size_t skip_bytes);

/* Bytes that this process could have resident in all: what it has, and what the machine and its cgroup (v2 or v1) have
 * free, less a reserve of 1/32 for everybody else. */
uint64_t budget_limit(void);

#endif
