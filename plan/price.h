/* price.h: what a step of a plan takes on given machines, found by running the real forward pass dry: on a device and a
 * network that only add up time (device/dry.h, comm/dry_comm.h). */
#ifndef RS_PLAN_PRICE_H
#define RS_PLAN_PRICE_H

#include "base/virtual_clock.h"
#include "plan/plan.h"

typedef struct price price;

/* Prepares the ranks of a plan, rank r on machine[r] of the cluster. The KV pages of any context cost address space
 * alone. All arguments but `machine` must outlive it. RS_NO_MEMORY. */
rs_status price_open(const rs_plan *plan, const rs_machines *cluster, const uint32_t *machine, price **out);
void price_close(price *p);

/* A step of `count` tokens behind `first`, of which the last one's logits are wanted. *longest receives the chain of
 * work and messages to the end of the last rank, clocks [ranks] (or NULL) what each did. Both are the same every time.
 * Statuses of forward_step; RS_NO_MEMORY. */
rs_status price_step(price *p, uint32_t first, uint32_t count, rs_parts *longest, virtual_clock *clocks);

/* A whole prompt, chunk after chunk. What a chunk takes is linear in its depth, but for a leap where queries begin to
 * travel instead of pages, so a few are run before and after it and the others read off the lines between them. */
rs_status price_prompt(price *p, uint32_t tokens, rs_parts *out);

double parts_sum(const rs_parts *parts);

#endif
