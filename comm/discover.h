/* discover.h: the head of a cluster announces itself on the local network, and a member finds it: DNS service discovery
 * (RFC 6763) over multicast DNS (RFC 6762), as "_ringspan._tcp". Avahi's responder and browser run in this process, so
 * no daemon is needed; one that runs, or another process that announces, shares UDP port 5353 with it.
 *
 * Anybody on the network can announce anything: what is found is an address to dial, and the secret is proved there as
 * always (channel.h). */
#ifndef RS_COMM_DISCOVER_H
#define RS_COMM_DISCOVER_H

#include "base/status.h"
#include "comm/channel.h"

enum { DISCOVER_NAME_MAX = 64 };

typedef struct announcement announcement;

/* Announces the head that listens at a socket of channel_listen: at its address, or, where it listens at all, at those
 * that this machine has now, on the network of each. name: the machine's; where another has taken it, a number
 * follows. Returns within seconds, when it can be found; a thread then answers until discover_withdraw. RS_BAD_ARGUMENT
 * for no such name, RS_IO where there is no network to announce it on, RS_NO_MEMORY. */
rs_status discover_announce(const char *name, int listener, announcement **out);

/* Tells the network that it is gone, and frees it. NULL: does nothing. */
void discover_withdraw(announcement *a);

/* A head that was found. No byte of either is a control character or beyond ASCII. */
typedef struct discover_head {
    char name[DISCOVER_NAME_MAX];
    char address[CHANNEL_PEER_MAX]; /* for channel_dial */
} discover_head;

/* Waits up to `deadline_s` for a head, and from the first answer on one second for others. RS_PEER_LATE when there is
 * none, RS_BAD_ARGUMENT when there are several, which the error names; RS_CANCELLED when go_on (or NULL), asked five
 * times a second, says so; RS_IO where the network cannot be asked, RS_NO_MEMORY. */
rs_status discover_find(double deadline_s, bool (*go_on)(void *user), void *user, discover_head *out);

#endif
