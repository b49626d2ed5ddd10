/* channel.c: sockets, the proof of the secret, and frames. */
#include "comm/channel.h"

#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

enum {
    MAGIC_BYTES = 8,
    NONCE_BYTES = 32,
    KEY_BYTES = crypto_auth_hmacsha256_KEYBYTES,
    PROOF_BYTES = crypto_auth_hmacsha256_BYTES,
    HELLO_BYTES = MAGIC_BYTES + NONCE_BYTES,
    HEAD_BYTES = 8, /* of a frame: length (4, little endian), kind, three zeros */
};

static const char magic[MAGIC_BYTES] = {'r', 's', 'p', 'a', 'n', 0, 0, 1}; /* the last: how the secret is proved */
static const double PROOF_S = 5;       /* for the whole proof: whoever listens does nothing else meanwhile */
static const double CONNECT_S = 5;     /* for an address, where a host has several */
static const double STEP_S = 5;        /* the most a peer may take between two bytes of a frame it has begun */
static const double TRY_AGAIN_S = 0.2; /* while nobody listens, and between two looks at go_on */

/* One direction's key and how many frames went. */
typedef struct stream {
    uint8_t key[KEY_BYTES];
    uint64_t count;
} stream;

struct channel {
    int socket;
    stream out, in;
    pthread_mutex_t send_lock;
};

/* ---- Bytes with a deadline ---- */

/* Waits for `events` of the socket until `until_s` of clock_s. */
static rs_status wait_socket(int fd, short events, double until_s) {
    struct pollfd p = {.fd = fd, .events = events};
    for (;;) {
        double left_s = until_s - clock_s();
        if (left_s < 0) return status_fail(RS_PEER_LATE, "the other side took too long");
        int ready = poll(&p, 1, left_s < 1e6 ? (int)(left_s * 1000) + 1 : -1);
        if (ready > 0) return RS_OK;
        if (ready < 0 && errno != EINTR) return status_fail(RS_IO, "cannot wait for a socket: %s", strerror(errno));
    }
}

/* Who dials, and until when. */
typedef struct dialler {
    double until_s;
    bool (*go_on)(void *user); /* or NULL */
    void *user;
} dialler;

static rs_status look_for_stop(const dialler *d) {
    if (d->go_on == NULL || d->go_on(d->user)) return RS_OK;
    return status_fail(RS_CANCELLED, "stopped while looking for a head");
}

/* wait_socket for a dialler: RS_CANCELLED when it does not go on. */
static rs_status wait_dialling(int fd, short events, double until_s, const dialler *d) {
    rs_status status;
    do {
        status = wait_socket(fd, events, fmin(until_s, clock_s() + TRY_AGAIN_S));
        if (status != RS_PEER_LATE) return status;
        RS_TRY(look_for_stop(d));
    } while (clock_s() < until_s);
    return status;
}

/* Each wait for the next bytes is bounded by STEP_S, and all of them by until_s of clock_s. */
static rs_status send_all(int fd, const void *data, size_t bytes, double until_s) {
    const uint8_t *place = data;
    while (bytes > 0) {
        ssize_t n = send(fd, place, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            place += n;
            bytes -= (size_t)n;
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            RS_TRY(wait_socket(fd, POLLOUT, fmin(until_s, clock_s() + STEP_S)));
        } else if (errno != EINTR) {
            return status_fail(RS_PEER_LOST, "the connection broke while sending: %s", strerror(errno));
        }
    }
    return RS_OK;
}

static rs_status receive_all(int fd, void *data, size_t bytes, double until_s) {
    uint8_t *place = data;
    while (bytes > 0) {
        ssize_t n = recv(fd, place, bytes, MSG_DONTWAIT);
        if (n > 0) {
            place += n;
            bytes -= (size_t)n;
        } else if (n == 0) {
            return status_fail(RS_PEER_LOST, "the other side closed the connection");
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            RS_TRY(wait_socket(fd, POLLIN, fmin(until_s, clock_s() + STEP_S)));
        } else if (errno != EINTR) {
            return status_fail(RS_PEER_LOST, "the connection broke: %s", strerror(errno));
        }
    }
    return RS_OK;
}

/* ---- The proof ---- */

/* HMAC of a label and both sides' random bytes, the dialler's first. */
static void derive(const uint8_t key[KEY_BYTES], const char *label, const uint8_t nonces[2 * NONCE_BYTES],
                   uint8_t out[PROOF_BYTES]) {
    crypto_auth_hmacsha256_state state;
    crypto_auth_hmacsha256_init(&state, key, KEY_BYTES);
    crypto_auth_hmacsha256_update(&state, (const uint8_t *)label, strlen(label));
    crypto_auth_hmacsha256_update(&state, nonces, 2 * NONCE_BYTES);
    crypto_auth_hmacsha256_final(&state, out);
}

/* Both sides' random bytes; the dialler speaks first. Its kernel connects it while the listener is busy with others:
 * *until_s, the end of the proof, counts from the answer. */
static rs_status swap_nonces(int fd, const dialler *d, double *until_s, uint8_t nonces[2 * NONCE_BYTES]) {
    uint8_t own[HELLO_BYTES], other[HELLO_BYTES];
    bool dialled = d != NULL;
    *until_s = clock_s() + PROOF_S;
    memcpy(own, magic, MAGIC_BYTES);
    randombytes_buf(own + MAGIC_BYTES, NONCE_BYTES);
    if (dialled) {
        RS_TRY(send_all(fd, own, HELLO_BYTES, *until_s));
        RS_TRY(wait_dialling(fd, POLLIN, fmax(d->until_s, *until_s), d));
        *until_s = clock_s() + PROOF_S;
    }
    RS_TRY(receive_all(fd, other, HELLO_BYTES, *until_s));
    if (memcmp(other, magic, MAGIC_BYTES) != 0) {
        return status_fail(RS_BAD_FORMAT, "the other side is no ringspan, or one that proves its secret otherwise");
    }
    if (!dialled) RS_TRY(send_all(fd, own, HELLO_BYTES, *until_s));
    memcpy(nonces + (dialled ? 0 : NONCE_BYTES), own + MAGIC_BYTES, NONCE_BYTES);
    memcpy(nonces + (dialled ? NONCE_BYTES : 0), other + MAGIC_BYTES, NONCE_BYTES);
    return RS_OK;
}

/* The listener (d NULL) is the first to prove, so that a dialler with the wrong secret learns why. */
static rs_status prove(channel *c, const dialler *d, const uint8_t key[KEY_BYTES]) {
    static const char *const labels[2] = {"listener", "dialler"};
    uint8_t nonces[2 * NONCE_BYTES], own[PROOF_BYTES], expected[PROOF_BYTES], got[PROOF_BYTES];
    bool dialled = d != NULL;
    double until_s;
    RS_TRY(swap_nonces(c->socket, d, &until_s, nonces));
    derive(key, labels[dialled], nonces, own);
    derive(key, labels[!dialled], nonces, expected);
    if (!dialled) RS_TRY(send_all(c->socket, own, PROOF_BYTES, until_s));
    RS_TRY(receive_all(c->socket, got, PROOF_BYTES, until_s));
    if (sodium_memcmp(got, expected, PROOF_BYTES) != 0) {
        return status_fail(RS_BAD_ARGUMENT, "the secrets of the two machines differ; give both the same");
    }
    if (dialled) RS_TRY(send_all(c->socket, own, PROOF_BYTES, until_s));
    static const char *const frames[2] = {"frames of the listener", "frames of the dialler"};
    derive(key, frames[dialled], nonces, c->out.key);
    derive(key, frames[!dialled], nonces, c->in.key);
    return RS_OK;
}

rs_status channel_check_secret(size_t secret_bytes) {
    if (secret_bytes < CHANNEL_SECRET_MIN) {
        return status_fail(RS_BAD_ARGUMENT, "the secret has %zu bytes, at least %d are needed", secret_bytes,
                           CHANNEL_SECRET_MIN);
    }
    if (sodium_init() < 0) return status_fail(RS_DEVICE, "this machine has no source of random bytes");
    return RS_OK;
}

/* A connected socket to a channel; takes the socket over, also on failure. */
static rs_status open_channel(int fd, const dialler *d, const void *secret, size_t secret_bytes, channel **out) {
    static const int on = 1;
    uint8_t key[KEY_BYTES];
    channel *c = calloc(1, sizeof *c);
    if (c == NULL) {
        close(fd);
        return status_fail(RS_NO_MEMORY, "no memory for a connection");
    }
    c->socket = fd;
    pthread_mutex_init(&c->send_lock, NULL);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    crypto_hash_sha256(key, secret, secret_bytes);
    rs_status status = prove(c, d, key);
    sodium_memzero(key, sizeof key);
    if (status != RS_OK) {
        channel_close(c);
        return status;
    }
    *out = c;
    return RS_OK;
}

/* ---- Addresses ---- */

/* Splits "HOST:PORT", "[HOST]:PORT" or "PORT"; host "" where there is none. */
static rs_status split_address(const char *address, char host[256], char port[8]) {
    const char *colon = strrchr(address, ':'), *begin = address;
    size_t bytes = colon == NULL ? 0 : (size_t)(colon - address);
    if (bytes >= 2 && address[0] == '[' && address[bytes - 1] == ']') {
        begin++;
        bytes -= 2;
    }
    const char *number = colon == NULL ? address : colon + 1;
    size_t digits = strspn(number, "0123456789");
    if (bytes >= 256 || digits == 0 || digits > 5 || number[digits] != 0 || atoi(number) > UINT16_MAX) {
        return status_fail(RS_BAD_ARGUMENT, "'%s' is no address; give HOST:PORT, such as 192.168.1.10:7777", address);
    }
    memcpy(host, begin, bytes);
    host[bytes] = 0;
    memcpy(port, number, digits + 1);
    return RS_OK;
}

static rs_status resolve(const char *address, bool listens, struct addrinfo **out) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = listens ? AI_PASSIVE : 0};
    char host[256], port[8];
    RS_TRY(split_address(address, host, port));
    if (host[0] == 0 && !listens) {
        return status_fail(RS_BAD_ARGUMENT, "'%s' names no host; give HOST:PORT of the head", address);
    }
    int failed = getaddrinfo(host[0] != 0 ? host : NULL, port, &hints, out);
    if (failed == 0) return RS_OK;
    return status_fail(RS_BAD_ARGUMENT, "the host of '%s' is not known: %s", address, gai_strerror(failed));
}

static void name_peer(const struct sockaddr *address, socklen_t bytes, char peer[CHANNEL_PEER_MAX]) {
    char host[64], port[8];
    if (getnameinfo(address, bytes, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        snprintf(peer, CHANNEL_PEER_MAX, "an unknown address");
    } else {
        snprintf(peer, CHANNEL_PEER_MAX, strchr(host, ':') != NULL ? "[%s]:%s" : "%s:%s", host, port);
    }
}

rs_status channel_listen(const char *address, int *listener, uint16_t *port) {
    static const int on = 1;
    struct addrinfo *found;
    RS_TRY(resolve(address, true, &found));
    int fd = -1, error = 0;
    for (struct addrinfo *a = found; a != NULL && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, 0);
        if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (fd >= 0 && bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, RS_RANKS_MAX) == 0) break;
        error = errno;
        if (fd >= 0) close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    if (fd < 0) return status_fail(RS_IO, "cannot listen at %s: %s", address, strerror(error));
    struct sockaddr_storage bound;
    socklen_t bytes = sizeof bound;
    getsockname(fd, (struct sockaddr *)&bound, &bytes);
    *port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                              : ((struct sockaddr_in *)&bound)->sin_port);
    *listener = fd;
    return RS_OK;
}

rs_status channel_accept(int listener, const void *secret, size_t secret_bytes, double deadline_s,
                         char peer[CHANNEL_PEER_MAX], channel **out) {
    RS_TRY(channel_check_secret(secret_bytes));
    RS_TRY(wait_socket(listener, POLLIN, clock_s() + deadline_s));
    struct sockaddr_storage address;
    socklen_t bytes = sizeof address;
    int fd = accept4(listener, (struct sockaddr *)&address, &bytes, SOCK_CLOEXEC);
    if (fd < 0) return status_fail(RS_IO, "cannot accept a connection: %s", strerror(errno));
    name_peer((struct sockaddr *)&address, bytes, peer);
    if (open_channel(fd, NULL, secret, secret_bytes, out) == RS_OK) return RS_OK;
    return status_fail(RS_PEER_LOST, "%s was refused: %s", peer, rs_last_error());
}

/* A head that is busy says nothing, nor does one without power: the kernels tell them apart within 20 seconds. */
static void keep_alive(int fd) {
    static const int on = 1, idle_s = 5, step_s = 5, steps = 3;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &step_s, sizeof step_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &steps, sizeof steps);
}

/* Connects to the first address that answers. RS_PEER_LATE with the reason alone as text, RS_CANCELLED. */
static rs_status connect_any(const struct addrinfo *found, const dialler *d, int *out) {
    int error = ECONNREFUSED;
    for (const struct addrinfo *a = found; a != NULL; a = a->ai_next) {
        int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) return status_fail(RS_PEER_LATE, "%s", strerror(errno));
        rs_status status = RS_OK;
        socklen_t bytes = sizeof error;
        keep_alive(fd);
        error = connect(fd, a->ai_addr, a->ai_addrlen) == 0 ? 0 : errno;
        if (error == EINPROGRESS) {
            status = wait_dialling(fd, POLLOUT, fmin(d->until_s, clock_s() + CONNECT_S), d);
            error = ETIMEDOUT;
            if (status == RS_OK) getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
        }
        *out = fd;
        if (error == 0) return RS_OK;
        close(fd);
        if (status == RS_CANCELLED) return status;
    }
    return status_fail(RS_PEER_LATE, "%s", strerror(error));
}

/* Whether it is worth to dial again: a listener may come, or close on those it has not let in yet and come again. */
static bool may_answer(rs_status status) {
    return status == RS_PEER_LATE || status == RS_PEER_LOST;
}

rs_status channel_dial(const char *address, const void *secret, size_t secret_bytes, double deadline_s,
                       bool (*go_on)(void *user), void *user, channel **out) {
    struct addrinfo *found;
    RS_TRY(channel_check_secret(secret_bytes));
    RS_TRY(resolve(address, false, &found));
    dialler d = {clock_s() + deadline_s, go_on, user};
    rs_status status;
    for (;;) {
        int fd = -1;
        status = connect_any(found, &d, &fd);
        if (status == RS_OK) status = open_channel(fd, &d, secret, secret_bytes, out);
        if (may_answer(status) && look_for_stop(&d) != RS_OK) status = RS_CANCELLED;
        if (!may_answer(status) || clock_s() + TRY_AGAIN_S > d.until_s) break;
        struct timespec pause = clock_after(TRY_AGAIN_S);
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &pause, NULL) == EINTR) continue;
    }
    freeaddrinfo(found);
    if (!may_answer(status)) return status;
    return status_fail(RS_PEER_LATE, "nobody answers at %s (%s); is the head running there, and the port open?",
                       address, rs_last_error());
}

/* ---- Frames ---- */

/* HMAC of the frame's number, head and content. */
static void seal(const stream *s, const uint8_t head[HEAD_BYTES], const void *data, size_t bytes,
                 uint8_t out[PROOF_BYTES]) {
    crypto_auth_hmacsha256_state state;
    uint8_t number[8];
    for (int i = 0; i < 8; i++) number[i] = (uint8_t)(s->count >> 8 * i);
    crypto_auth_hmacsha256_init(&state, s->key, KEY_BYTES);
    crypto_auth_hmacsha256_update(&state, number, sizeof number);
    crypto_auth_hmacsha256_update(&state, head, HEAD_BYTES);
    crypto_auth_hmacsha256_update(&state, data, bytes);
    crypto_auth_hmacsha256_final(&state, out);
}

static rs_status send_frame(channel *c, uint8_t kind, const void *data, size_t bytes) {
    uint8_t head[HEAD_BYTES] = {(uint8_t)bytes, (uint8_t)(bytes >> 8), (uint8_t)(bytes >> 16), (uint8_t)(bytes >> 24),
                                kind};
    uint8_t proof[PROOF_BYTES];
    seal(&c->out, head, data, bytes, proof);
    c->out.count++;
    RS_TRY(send_all(c->socket, head, sizeof head, INFINITY));
    RS_TRY(send_all(c->socket, data, bytes, INFINITY));
    return send_all(c->socket, proof, sizeof proof, INFINITY);
}

rs_status channel_send(channel *c, uint8_t kind, const void *data, size_t bytes) {
    if (bytes > CHANNEL_FRAME_MAX) {
        return status_fail(RS_LIMIT, "a frame of %zu bytes, at most %d are possible", bytes, CHANNEL_FRAME_MAX);
    }
    pthread_mutex_lock(&c->send_lock);
    rs_status status = send_frame(c, kind, data, bytes);
    pthread_mutex_unlock(&c->send_lock);
    return status == RS_OK ? RS_OK : status_fail(RS_PEER_LOST, "the other side takes no more frames");
}

static rs_status receive_content(channel *c, const uint8_t head[HEAD_BYTES], channel_frame *f) {
    uint8_t proof[PROOF_BYTES], expected[PROOF_BYTES];
    RS_TRY(receive_all(c->socket, f->data, f->bytes, INFINITY));
    RS_TRY(receive_all(c->socket, proof, sizeof proof, INFINITY));
    seal(&c->in, head, f->data, f->bytes, expected);
    c->in.count++;
    if (sodium_memcmp(proof, expected, PROOF_BYTES) == 0) return RS_OK;
    return status_fail(RS_PEER_LOST, "a frame was forged or damaged on its way");
}

rs_status channel_receive(channel *c, double deadline_s, channel_frame *out) {
    uint8_t head[HEAD_BYTES];
    RS_TRY(wait_socket(c->socket, POLLIN, clock_s() + deadline_s));
    RS_TRY(receive_all(c->socket, head, sizeof head, INFINITY));
    size_t bytes = head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
    if (bytes > CHANNEL_FRAME_MAX) {
        return status_fail(RS_PEER_LOST, "a frame of %zu bytes, at most %d are possible", bytes, CHANNEL_FRAME_MAX);
    }
    channel_frame f = {head[4], malloc(bytes + 1), bytes};
    if (f.data == NULL) return status_fail(RS_NO_MEMORY, "no memory for a frame of %zu bytes", bytes);
    f.data[bytes] = 0; /* so that text ends */
    rs_status status = receive_content(c, head, &f);
    if (status != RS_OK) {
        free(f.data);
        return status == RS_PEER_LATE ? RS_PEER_LOST : status; /* late means that none began */
    }
    *out = f;
    return RS_OK;
}

void channel_shut(channel *c) {
    shutdown(c->socket, SHUT_RDWR);
}

void channel_close(channel *c) {
    if (c == NULL) return;
    close(c->socket);
    pthread_mutex_destroy(&c->send_lock);
    sodium_memzero(c, sizeof *c);
    free(c);
}
