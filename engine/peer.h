/* peer.h: a connection to another machine of a cluster that is watched. A thread of its own sends signs of life and
 * expects them; whoever is silent for PEER_SILENCE_S, or gone, is lost, once and for ever. */
#ifndef RS_ENGINE_PEER_H
#define RS_ENGINE_PEER_H

#include "comm/channel.h"

/* A machine under full load still sends ten signs in this time. */
static const double PEER_SILENCE_S = 2.0;

/* Kinds of frames. The content is JSON unless it says otherwise. */
typedef enum peer_kind {
    PEER_BEAT,    /* a sign of life: empty */
    PEER_HELLO,   /* to the head: who joins */
    PEER_WELCOME, /* to a member: it may stay, and which model is run */
    PEER_BYTES,   /* to a member without the model's file: 8 bytes of offset, little endian, then bytes of the file */
    PEER_MEASURE, /* to a member: rank, ranks and epoch of a group whose links are to be measured */
    PEER_PLAN,    /* to a member: what an engine is to be */
    PEER_READY,   /* to the head: the plan is understood and fits; the address for comm/ucx.h */
    PEER_FAILED,  /* either way, the end: a status as digits, a space and a sentence of text */
    PEER_NAMES,   /* to a member: everybody's address */
    PEER_BYE,     /* either way: an end as it should be: empty */
} peer_kind;

typedef struct peer peer;

/* Takes the channel over. `lost` is called once, from the peer's thread, when the other is lost (status RS_PEER_LOST),
 * says FAILED (its status) or BYE (RS_OK), with a sentence. RS_NO_MEMORY. */
typedef void (*peer_lost)(void *user, peer *p, rs_status status, const char *why);
rs_status peer_open(channel *c, peer_lost lost, void *user, peer **out);
void peer_close(peer *p);

rs_status peer_send(peer *p, peer_kind kind, const void *data, size_t bytes);

/* The same of a text that it takes over and frees. */
rs_status peer_send_text(peer *p, peer_kind kind, char *text);

/* Sends FAILED. */
rs_status peer_send_failure(peer *p, rs_status status, const char *why);

/* The next frame that is none of BEAT, FAILED and BYE. RS_PEER_LATE, RS_PEER_LOST. Free out->data. */
rs_status peer_next(peer *p, double deadline_s, channel_frame *out);

/* The same, which must be of this kind: RS_BAD_FORMAT if not. */
rs_status peer_expect(peer *p, peer_kind kind, double deadline_s, channel_frame *out);

#endif
