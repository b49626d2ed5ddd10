/* words.h: what the machines of a cluster tell each other before an engine runs, as JSON (RFC 8259, by jansson): small,
 * rare, and readable when something is wrong. Every text made here is freed with free. What cannot be read is
 * RS_BAD_FORMAT. */
#ifndef RS_ENGINE_WORDS_H
#define RS_ENGINE_WORDS_H

#include "engine/cluster.h"
#include "model/partial.h"

enum { WORDS_ADDRESS_MAX = 4096 /* bytes of an address of comm/ucx.h; those met have some hundred */ };

typedef struct words_hello {
    char version[16], host[CLUSTER_HOST_MAX], model[MODEL_HASH_TEXT]; /* model "" without a file */
    bool known;                                                       /* `is` is filled in */
    rs_machine is;
} words_hello;

typedef struct words_welcome {
    char host[CLUSTER_HOST_MAX], model[MODEL_HASH_TEXT];
    uint64_t file_bytes; /* 0: the head has no model, and only measures */
} words_welcome;

typedef struct words_measure {
    uint32_t rank, ranks, epoch;
} words_measure;

typedef struct words_plan {
    rs_options options; /* the head's; threads, memory limit, kernels and cluster are each machine's own */
    uint32_t rank, epoch;
    char hash[MODEL_HASH_TEXT];   /* of the plan */
    bool has_model[RS_RANKS_MAX]; /* ranks without are sent their slices by rank 0 */
} words_plan;

typedef struct words_address {
    uint8_t data[WORDS_ADDRESS_MAX];
    size_t bytes;
} words_address;

rs_status words_write_hello(const words_hello *h, char **out);
rs_status words_read_hello(const channel_frame *f, words_hello *out);
rs_status words_write_welcome(const words_welcome *w, char **out);
rs_status words_read_welcome(const channel_frame *f, words_welcome *out);
rs_status words_write_measure(const words_measure *m, char **out);
rs_status words_read_measure(const channel_frame *f, words_measure *out);
rs_status words_write_plan(const words_plan *p, char **out);
rs_status words_read_plan(const channel_frame *f, words_plan *out);
rs_status words_write_address(const void *address, size_t bytes, char **out);
rs_status words_read_address(const channel_frame *f, words_address *out);
rs_status words_write_addresses(const words_address *list, uint32_t count, char **out);
rs_status words_read_addresses(const channel_frame *f, uint32_t count, words_address *list);

/* What two machines must agree on to be in step, as hex digits: model, version, who holds what, chunk and formats. */
void words_plan_hash(const rs_plan *p, const char *model, char out[MODEL_HASH_TEXT]);

#endif
