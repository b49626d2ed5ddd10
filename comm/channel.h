/* channel.h: a TCP connection between two machines of a cluster that know one secret. It carries what is small and
 * rare: who joins, plans, addresses, signs of life. What is large or urgent goes through comm.h.
 *
 * Before anything of a stranger is looked at, both sides prove the secret: each sends 32 random bytes and answers with
 * an HMAC-SHA256 (RFC 2104, by libsodium) over both sides' random bytes under the secret. Every frame afterwards
 * carries an HMAC under a key made of all that, its direction and its number, so that frames can be neither forged,
 * repeated, reordered nor sent back. Frames are not encrypted: whoever listens on the wire reads them. */
#ifndef RS_COMM_CHANNEL_H
#define RS_COMM_CHANNEL_H

#include <stddef.h>

#include "base/status.h"

enum {
    CHANNEL_FRAME_MAX = 4 << 20, /* bytes of a frame: on a slow link, too, it must not keep signs of life waiting */
    CHANNEL_SECRET_MIN = 8,      /* bytes of a secret, the least that is not a joke */
    CHANNEL_PEER_MAX = 80,
};

typedef struct channel channel;

typedef struct channel_frame {
    uint8_t kind;  /* what the caller says it is */
    uint8_t *data; /* [bytes], and a zero behind; freed by whoever received it */
    size_t bytes;
} channel_frame;

/* "HOST:PORT", "[::1]:PORT", or "PORT" alone for every address of this machine. *listener is a socket (close it with
 * close), *port what it really listens at (0 asks for any). RS_BAD_ARGUMENT for no such address, RS_IO. */
rs_status channel_listen(const char *address, int *listener, uint16_t *port);

/* RS_BAD_ARGUMENT for a secret that is too short, RS_DEVICE without random bytes. What follows asks it by itself. */
rs_status channel_check_secret(size_t secret_bytes);

/* Waits up to `deadline_s` for a connection, RS_PEER_LATE when there is none; then proves the secret to whoever it is.
 * `peer` receives its address as text, also when RS_PEER_LOST says that it was refused. A stranger holds this up for
 * some seconds at most. */
rs_status channel_accept(int listener, const void *secret, size_t secret_bytes, double deadline_s,
                         char peer[CHANNEL_PEER_MAX], channel **out);

/* Connects to "HOST:PORT" and proves the secret, trying again for `deadline_s` while nobody answers there or who does
 * closes before the proof; one that is busy with others has as long to begin it, and five seconds at least.
 * RS_BAD_ARGUMENT for no such address or when the secrets differ, RS_PEER_LATE when nobody answered, RS_CANCELLED when
 * go_on (or NULL), asked five times a second, says so, RS_BAD_FORMAT when something else listens there. */
rs_status channel_dial(const char *address, const void *secret, size_t secret_bytes, double deadline_s,
                       bool (*go_on)(void *user), void *user, channel **out);

/* Sends a frame. Any thread, whole frames in turn. RS_PEER_LOST, also when the other does not take it within seconds.
 */
rs_status channel_send(channel *c, uint8_t kind, const void *data, size_t bytes);

/* Receives the next frame. One thread at a time. RS_PEER_LATE after `deadline_s` without its beginning, RS_PEER_LOST
 * when the other is gone or a frame is forged, RS_NO_MEMORY. */
rs_status channel_receive(channel *c, double deadline_s, channel_frame *out);

/* Makes a channel_receive in another thread return RS_PEER_LOST, and every later call. Any thread. */
void channel_shut(channel *c);
void channel_close(channel *c);

#endif
