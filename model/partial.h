/* partial.h: a model without its file. A rank of a cluster whose machine has none is sent what every rank needs, the
 * header, all vectors and the token embedding, into memory laid out as the file; the rest of it is never touched and
 * costs nothing. Its slices of the matrices come separately. */
#ifndef RS_MODEL_PARTIAL_H
#define RS_MODEL_PARTIAL_H

#include "model/model.h"

enum { MODEL_HASH_BYTES = 16, MODEL_HASH_TEXT = 2 * MODEL_HASH_BYTES + 1 };

/* What tells files apart: BLAKE2b of the header, the size, and the first and last bytes of every tensor, as hex digits.
 * Reads some MiB, not the whole file. */
void model_hash(const rs_model *m, char out[MODEL_HASH_TEXT]);

/* Calls `each` with the runs of the file's bytes that every rank needs, in pieces of at most `piece_max`, until it
 * fails. */
typedef rs_status (*partial_each)(void *user, uint64_t offset, const uint8_t *data, size_t bytes);
rs_status partial_walk(const rs_model *m, size_t piece_max, partial_each each, void *user);

/* Address space for a file of that size, zero where nothing was written. RS_NO_MEMORY. */
rs_status partial_map(uint64_t file_bytes, uint8_t **out);
void partial_unmap(uint8_t *data, uint64_t file_bytes);

/* A model of such memory once all runs are in it; takes it over, also on failure. Statuses of rs_model_open. */
rs_status partial_open(uint8_t *data, uint64_t file_bytes, rs_model **out);

#endif
