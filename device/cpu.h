/* cpu.h: the device that is this machine's cores. */
#ifndef RS_DEVICE_CPU_H
#define RS_DEVICE_CPU_H

#include "base/pool.h"
#include "device/device.h"

/* Buffers of a CPU device; pointers are NULL while measuring. */
typedef struct cpu_buffers {
    device_limits limits;
    size_t threads;
    size_t matmul_floats;  /* of the scratch, for the matmul kernels; a part of a product follows */
    size_t scratch_floats; /* of one thread */
    float *scratch;        /* [threads, scratch_floats] */
    float *packed;         /* x as matmul_packed wants it, of kernels that have it */
    float *parts;          /* partial states of an attention split over pages */
} cpu_buffers;

/* Takes the buffers of a device with these kernels and `threads` threads from the arena (base/arena.h). */
void cpu_layout(cpu_buffers *b, arena *a, const kernels *k, const device_limits *limits, size_t threads);

/* A device over laid-out buffers and a pool of as many threads, both of which must outlive it. RS_NO_MEMORY. */
rs_status cpu_open(const kernels *kernels, const cpu_buffers *buffers, pool *threads, device **out);

#endif
