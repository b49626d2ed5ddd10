/* dry.h: the device that only adds up what operations would take, and touches no memory. */
#ifndef RS_DEVICE_DRY_H
#define RS_DEVICE_DRY_H

#include "base/virtual_clock.h"
#include "device/device.h"

/* A device whose operations pass time on `clock` at the given rates; both must outlive it. Of its arguments an
 * operation reads shapes, the positions of rows and those of pages. RS_NO_MEMORY. */
rs_status dry_open(const rs_rates *rates, virtual_clock *clock, device **out);

/* Seconds of a product of a [rows, cols] matrix with so many tokens, without the launch and making tokens ready. */
double dry_product_s(const rs_rates *r, format f, size_t rows, size_t cols, size_t tokens);

/* Seconds that `rows` queries a KV head take for one byte of K or V. */
double dry_attend_byte_s(const rs_rates *r, rs_kv_format kv, size_t rows);

#endif
