/* slices.h: a rank's slices of the weights in memory of its own, and how the slices of all ranks make a layer.
 *
 * The matrices of a layer's slice lie in one run of bytes, each from a multiple of ARENA_ALIGN on, rows without gaps;
 * so a slice is one message. Vectors (norms, biases) are small and stay where the file has them. */
#ifndef RS_MODEL_SLICES_H
#define RS_MODEL_SLICES_H

#include "base/arena.h"
#include "model/shard.h"

/* The matrices of a layer in the order of a run: what is sliced last comes first, so that the matrices of which ranks
 * hold different parts are the end of a run, for every split. */
typedef enum run_matrix { RUN_Q, RUN_K, RUN_V, RUN_O, RUN_GATE, RUN_UP, RUN_DOWN, RUN_MATRICES } run_matrix;

/* Where the part of a run begins that other ranks need to have the whole layer. RUN_MATRICES: they need nothing. */
run_matrix run_travels_from(const sharding *s);

/* Bytes of a shard's run of a layer, from the matrix `first` on. */
size_t run_bytes(const layer_weights *whole, const hparams *h, const shard *s, run_matrix first);

/* Copies a shard's slices of a whole layer to a run, from RUN_Q on. */
void run_pack(const layer_weights *whole, const hparams *h, const shard *s, uint8_t *run);

/* A shard's slice of a layer, with its matrices from `first` on in a run that begins with that one; those before are
 * empty. Of `whole` only shapes, formats and vectors count. */
layer_weights run_view(const layer_weights *whole, const hparams *h, const shard *s, run_matrix first,
                       const uint8_t *run);

/* A whole layer as the parts [ranks] that a rank has: its own slice, and what the others sent (runs[p], from
 * run_travels_from on). Rows of the parts follow each other, of o and down columns do; a matrix that no rank slices is
 * in the first part and empty in the others. */
void run_join(const layer_weights *whole, const hparams *h, const sharding *s, uint32_t rank, const layer_weights *own,
              const uint8_t *const runs[], layer_weights parts[]);

/* Everything that a rank multiplies by in decode. */
typedef struct slices {
    layer_weights *layers; /* [layers it runs] */
    matrix output;         /* its rows of the output matrix */
} slices;

/* Takes a rank's slices from the arena: packed, memory for all of their matrices, to be filled by slices_pack or from
 * elsewhere (a layer's run begins at layers[i].q.data); else nothing but views of the file's mapping. */
void slices_layout(slices *s, arena *a, const hparams *h, const weights *w, const shard *own, bool packed);

/* Gives the memory of a layer's part of the mapping back; what is read there again comes from the file. */
void layer_forget(const layer_weights *whole, const gguf *file);

/* Fills packed slices from the file, and gives the mapping's memory back as it goes. */
void slices_pack(const slices *s, const hparams *h, const weights *w, const shard *own, const gguf *file);

/* Bytes of the file that packed slices leave to be read from its mapping: vectors, embeddings and header. */
uint64_t slices_rest_bytes(const hparams *h, const weights *w, const gguf *file);

#endif
