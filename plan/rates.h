/* rates.h: how fast this machine does the operations of a forward pass. */
#ifndef RS_PLAN_RATES_H
#define RS_PLAN_RATES_H

#include "device/cpu.h"

/* Called between measurements; false stops them (RS_CANCELLED). */
typedef bool (*rates_tick)(void *user);

enum { RATES_TICKS = 64 }; /* calls of one rates_measure, at most */

/* Measures with a device of `threads` threads, for a few seconds; `memory` [bytes], a mapping beyond all caches, is
 * what weights and pages are read from, and is overwritten. RS_CANCELLED, RS_NO_MEMORY. */
rs_status rates_measure(const kernels *k, const topology *t, size_t threads, uint8_t *memory, size_t bytes,
                        rates_tick tick, void *user, rs_rates *out);

/* Measures exchanges between `ranks` threads. RS_NO_MEMORY. */
rs_status rates_measure_link(const topology *t, uint32_t ranks, rs_link *out);

#endif
