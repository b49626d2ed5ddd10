/* test_channel.c: the proof of the secret, frames, and what a stranger, a listener on the wire or a broken peer can do
 * to either; and the watch over a connection. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/random.h"
#include "engine/peer.h"

static const char secret[] = "open sesame", other_secret[] = "open barley";
enum { FRAMES = 50, BYTES_MAX = 100000 };

/* One side of a connection, opened by a thread so that the two can talk. */
typedef struct side {
    pthread_t thread;
    const char *secret;
    int listener;      /* -1: it dials */
    double patience_s; /* 0: 20 */
    char address[64];
    rs_status status;
    char error[STATUS_TEXT_MAX], peer[CHANNEL_PEER_MAX];
    channel *channel;
} side;

static void *side_main(void *argument) {
    side *s = argument;
    size_t bytes = strlen(s->secret);
    double patience_s = s->patience_s > 0 ? s->patience_s : 20;
    s->status = s->listener >= 0 ? channel_accept(s->listener, s->secret, bytes, patience_s, s->peer, &s->channel)
                                 : channel_dial(s->address, s->secret, bytes, patience_s, NULL, NULL, &s->channel);
    snprintf(s->error, sizeof s->error, "%s", rs_last_error());
    return NULL;
}

static int listen_somewhere(char address[64]) {
    int listener;
    uint16_t port;
    assert_int_equal(channel_listen("127.0.0.1:0", &listener, &port), RS_OK);
    snprintf(address, 64, "127.0.0.1:%u", port);
    return listener;
}

static void connect_sides(side *head, side *member, const char *head_secret, const char *member_secret) {
    *head = (side){.secret = head_secret};
    *member = (side){.secret = member_secret, .listener = -1};
    head->listener = listen_somewhere(head->address);
    snprintf(member->address, sizeof member->address, "%s", head->address);
    assert_int_equal(pthread_create(&head->thread, NULL, side_main, head), 0);
    assert_int_equal(pthread_create(&member->thread, NULL, side_main, member), 0);
    pthread_join(head->thread, NULL);
    pthread_join(member->thread, NULL);
    close(head->listener);
}

static void close_sides(side *head, side *member) {
    channel_close(head->channel);
    channel_close(member->channel);
}

/* ---- The proof ---- */

static void test_the_same_secret_opens(void **state) {
    (void)state;
    side head, member;
    connect_sides(&head, &member, secret, secret);
    assert_int_equal(head.status, RS_OK);
    assert_int_equal(member.status, RS_OK);
    assert_non_null(strstr(head.peer, "127.0.0.1:"));
    close_sides(&head, &member);
}

static void test_another_secret_is_refused_and_told(void **state) {
    (void)state;
    side head, member;
    connect_sides(&head, &member, secret, other_secret);
    assert_int_equal(head.status, RS_PEER_LOST);
    assert_int_equal(member.status, RS_BAD_ARGUMENT);
    assert_non_null(strstr(member.error, "secrets of the two machines differ"));
    assert_null(head.channel);
    assert_null(member.channel);
}

static void test_short_secrets_and_bad_addresses_are_refused(void **state) {
    (void)state;
    static const char *const bad[] = {"", "host", "host:", "host:x", "host:70000", ":", "host:12 ", "7777"};
    channel *c;
    assert_int_equal(channel_dial("127.0.0.1:9", "1234567", 7, 0, NULL, NULL, &c), RS_BAD_ARGUMENT);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(channel_dial(bad[i], secret, strlen(secret), 0, NULL, NULL, &c), RS_BAD_ARGUMENT);
    }
    int listener;
    uint16_t port;
    assert_int_equal(channel_listen("127.0.0.1:", &listener, &port), RS_BAD_ARGUMENT);
    assert_int_equal(channel_listen("192.0.2.1:7777", &listener, &port), RS_IO); /* no address of this machine */
}

static bool three_times(void *user) {
    return ++*(int *)user < 3;
}

static void test_nobody_there(void **state) {
    (void)state;
    char address[64];
    channel *c;
    close(listen_somewhere(address)); /* a port that nobody listens at any more */
    assert_int_equal(channel_dial(address, secret, strlen(secret), 0.3, NULL, NULL, &c), RS_PEER_LATE);
    assert_non_null(strstr(rs_last_error(), address));
    int asked = 0;
    assert_int_equal(channel_dial(address, secret, strlen(secret), 600, three_times, &asked, &c), RS_CANCELLED);
    assert_int_equal(asked, 3);
}

/* Lets a member in that dials already. */
static void let_in(side *head, side *member) {
    side_main(head);
    pthread_join(member->thread, NULL);
    assert_int_equal(head->status, RS_OK);
    assert_int_equal(member->status, RS_OK);
    close_sides(head, member);
    close(head->listener);
}

/* The kernel connects before the head has time: the member waits as long as it was told to, and can be stopped. */
static void test_a_busy_head_is_waited_for(void **state) {
    (void)state;
    side head = {.secret = secret}, member = {.secret = secret, .listener = -1};
    channel *c;
    int asked = 0;
    head.listener = listen_somewhere(head.address);
    assert_int_equal(channel_dial(head.address, secret, strlen(secret), 600, three_times, &asked, &c), RS_CANCELLED);
    assert_int_equal(asked, 3);
    side_main(&head); /* the one who has gone */
    assert_int_equal(head.status, RS_PEER_LOST);
    snprintf(member.address, sizeof member.address, "%s", head.address);
    assert_int_equal(pthread_create(&member.thread, NULL, side_main, &member), 0);
    usleep(6000000); /* longer than the proof may take */
    let_in(&head, &member);
}

/* A head that closes, and comes again, finds a member that it had not let in yet. */
static void test_a_head_that_closes_is_dialled_again(void **state) {
    (void)state;
    side head = {.secret = secret}, member = {.secret = secret, .listener = -1};
    uint16_t port;
    int first = listen_somewhere(head.address);
    struct pollfd knocks = {.fd = first, .events = POLLIN};
    snprintf(member.address, sizeof member.address, "%s", head.address);
    assert_int_equal(pthread_create(&member.thread, NULL, side_main, &member), 0);
    assert_int_equal(poll(&knocks, 1, 20000), 1);
    close(first);
    assert_int_equal(channel_listen(head.address, &head.listener, &port), RS_OK);
    let_in(&head, &member);
}

/* ---- A relay on the wire ---- */

/* Passes bytes between dialler and head, and changes byte `change` of those from dialler to head, or closes there. */
typedef struct relay {
    pthread_t thread;
    int listener;
    const char *onward;
    char address[64];
    size_t change;
    bool cut;
} relay;

static int dial_raw(const char *address) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    to.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static void *relay_main(void *argument) {
    relay *r = argument;
    int near = accept(r->listener, NULL, NULL), far = dial_raw(r->onward);
    close(r->listener); /* who dials again is refused */
    size_t passed = 0;
    struct pollfd ends[2] = {{.fd = near, .events = POLLIN}, {.fd = far, .events = POLLIN}};
    for (bool on = true; on && poll(ends, 2, -1) > 0;) {
        for (int i = 0; i < 2 && on; i++) {
            uint8_t data[4096];
            if (ends[i].revents == 0) continue;
            ssize_t n = recv(ends[i].fd, data, sizeof data, 0);
            on = n > 0;
            for (ssize_t k = 0; i == 0 && k < n; k++) {
                if (passed++ != r->change) continue;
                data[k] ^= 1;
                if (r->cut) n = k;
            }
            on = on && send(ends[1 - i].fd, data, (size_t)n, MSG_NOSIGNAL) == n && !(r->cut && passed > r->change);
        }
    }
    close(near);
    close(far);
    return NULL;
}

enum { HELLO_BYTES = 40, PROOF_BYTES = 32 };

/* Opens a connection through a relay and sends one frame over it; returns what became of it at the head. */
static rs_status through_relay(size_t change, bool cut) {
    relay r = {.change = change, .cut = cut};
    side head = {.secret = secret}, member = {.secret = secret, .listener = -1, .patience_s = 0.1};
    channel_frame f;
    r.listener = listen_somewhere(r.address);
    head.listener = listen_somewhere(head.address);
    r.onward = head.address;
    snprintf(member.address, sizeof member.address, "%s", r.address);
    assert_int_equal(pthread_create(&r.thread, NULL, relay_main, &r), 0);
    assert_int_equal(pthread_create(&head.thread, NULL, side_main, &head), 0);
    assert_int_equal(pthread_create(&member.thread, NULL, side_main, &member), 0);
    pthread_join(head.thread, NULL);
    pthread_join(member.thread, NULL);
    rs_status status = head.status;
    if (member.status == RS_OK) channel_send(member.channel, 7, "content", 7);
    if (status == RS_OK) {
        status = channel_receive(head.channel, 20, &f);
        if (status == RS_OK) free(f.data);
    }
    close_sides(&head, &member);
    pthread_join(r.thread, NULL);
    close(head.listener);
    return status;
}

static void test_a_changed_byte_is_found_wherever_it_is(void **state) {
    (void)state;
    size_t all = HELLO_BYTES + PROOF_BYTES + 8 + 7 + PROOF_BYTES;
    assert_int_equal(through_relay(SIZE_MAX, false), RS_OK);
    for (size_t i = 0; i < all; i += 3) {
        rs_status status = through_relay(i, false);
        /* A length that grew (bytes 72 to 75) waits for what never comes; the connection's end then tells. */
        if (status != RS_PEER_LOST) fail_msg("byte %zu changed, status %s", i, rs_status_name(status));
    }
}

static void test_a_connection_cut_anywhere_is_lost(void **state) {
    (void)state;
    for (size_t i = 1; i < HELLO_BYTES + PROOF_BYTES + 8 + 7 + PROOF_BYTES; i += 7) {
        assert_int_equal(through_relay(i, true), RS_PEER_LOST);
    }
}

/* ---- Frames ---- */

static void *send_frames(void *argument) {
    channel *c = argument;
    uint8_t *data = malloc(BYTES_MAX);
    for (uint64_t i = 0; i < FRAMES; i++) {
        uint64_t seed = i;
        size_t bytes = random_next(&seed) % BYTES_MAX;
        memset(data, (int)i, bytes);
        if (channel_send(c, (uint8_t)(i % 200), data, bytes) != RS_OK) break;
    }
    free(data);
    return NULL;
}

static void test_frames_arrive_whole_and_in_order(void **state) {
    (void)state;
    side head, member;
    pthread_t threads[2];
    connect_sides(&head, &member, secret, secret);
    pthread_create(&threads[0], NULL, send_frames, head.channel);
    pthread_create(&threads[1], NULL, send_frames, member.channel);
    for (uint64_t i = 0; i < FRAMES; i++) {
        for (int way = 0; way < 2; way++) {
            channel_frame f;
            uint64_t seed = i;
            assert_int_equal(channel_receive(way ? head.channel : member.channel, 20, &f), RS_OK);
            assert_int_equal(f.kind, i % 200);
            assert_int_equal(f.bytes, random_next(&seed) % BYTES_MAX);
            for (size_t k = 0; k < f.bytes; k++) assert_int_equal(f.data[k], i);
            assert_int_equal(f.data[f.bytes], 0);
            free(f.data);
        }
    }
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    channel_frame f;
    assert_int_equal(channel_receive(head.channel, 0.01, &f), RS_PEER_LATE);
    assert_int_equal(channel_send(head.channel, 0, secret, (size_t)CHANNEL_FRAME_MAX + 1), RS_LIMIT);
    close_sides(&head, &member);
}

/* ---- Strangers ---- */

static void test_a_stranger_does_not_keep_others_out(void **state) {
    (void)state;
    static const char *const words[] = {"", "GET / HTTP/1.1\r\nHost: here\r\nAccept: everything there is\r\n\r\n"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        side head = {.secret = secret};
        head.listener = listen_somewhere(head.address);
        int stranger = dial_raw(head.address);
        send(stranger, words[i], strlen(words[i]), 0);
        side_main(&head);
        assert_int_equal(head.status, RS_PEER_LOST);
        assert_non_null(strstr(head.error, "was refused"));
        close(stranger);
        close(head.listener);
    }
}

static void *drip(void *argument) {
    static const uint8_t hello[] = {'r', 's', 'p', 'a', 'n', 0, 0, 1};
    int fd = *(int *)argument;
    for (size_t i = 0; send(fd, i < sizeof hello ? &hello[i] : hello, 1, MSG_NOSIGNAL) == 1; i++) usleep(200000);
    return NULL;
}

/* One who sends a byte now and then gets no more time than one who sends none. */
static void test_a_stranger_cannot_draw_out_the_proof(void **state) {
    (void)state;
    side head = {.secret = secret};
    pthread_t thread;
    head.listener = listen_somewhere(head.address);
    int stranger = dial_raw(head.address);
    assert_int_equal(pthread_create(&thread, NULL, drip, &stranger), 0);
    side_main(&head);
    assert_int_equal(head.status, RS_PEER_LOST);
    assert_non_null(strstr(head.error, "took too long")); /* before the 40 bytes were there, which takes 8 s */
    pthread_join(thread, NULL);
    close(stranger);
    close(head.listener);
}

/* ---- The watch ---- */

typedef struct news {
    atomic_int calls;
    rs_status status;
    char why[STATUS_TEXT_MAX];
} news;

static void note(void *user, peer *p, rs_status status, const char *why) {
    news *n = user;
    (void)p;
    n->status = status;
    snprintf(n->why, sizeof n->why, "%s", why);
    atomic_fetch_add(&n->calls, 1);
}

static void await_news(const news *n) {
    for (double until_s = clock_s() + 60; atomic_load(&n->calls) == 0 && clock_s() < until_s;) usleep(1000);
    assert_int_equal(atomic_load(&n->calls), 1);
}

static void test_two_watched_ends_live_on(void **state) {
    (void)state;
    side head, member;
    news seen[2] = {0};
    peer *ends[2];
    channel_frame f;
    connect_sides(&head, &member, secret, secret);
    assert_int_equal(peer_open(head.channel, note, &seen[0], &ends[0]), RS_OK);
    assert_int_equal(peer_open(member.channel, note, &seen[1], &ends[1]), RS_OK);
    usleep((useconds_t)(1.2e6 * PEER_SILENCE_S));
    assert_int_equal(peer_send(ends[0], PEER_PLAN, "a", 1), RS_OK);
    assert_int_equal(peer_expect(ends[1], PEER_PLAN, 20, &f), RS_OK);
    free(f.data);
    assert_int_equal(peer_expect(ends[1], PEER_PLAN, 0.01, &f), RS_PEER_LATE);
    assert_int_equal(peer_send(ends[0], PEER_NAMES, "a", 1), RS_OK);
    assert_int_equal(peer_expect(ends[1], PEER_PLAN, 20, &f), RS_BAD_FORMAT);
    assert_int_equal(atomic_load(&seen[0].calls) + atomic_load(&seen[1].calls), 0);
    peer_close(ends[0]); /* closing is not losing, but the other end loses */
    await_news(&seen[1]);
    assert_int_equal(seen[1].status, RS_PEER_LOST);
    assert_int_equal(peer_expect(ends[1], PEER_PLAN, 20, &f), RS_PEER_LOST);
    peer_close(ends[1]);
    assert_int_equal(atomic_load(&seen[0].calls), 0);
}

static void test_a_silent_end_is_lost(void **state) {
    (void)state;
    side head, member;
    news seen = {0};
    peer *end;
    connect_sides(&head, &member, secret, secret);
    double begun_s = clock_s();
    assert_int_equal(peer_open(head.channel, note, &seen, &end), RS_OK);
    await_news(&seen);
    assert_true(clock_s() - begun_s >= PEER_SILENCE_S);
    assert_int_equal(seen.status, RS_PEER_LOST);
    assert_non_null(strstr(seen.why, "silent"));
    peer_close(end);
    channel_close(member.channel);
}

static void test_last_words_are_heard(void **state) {
    (void)state;
    static const struct {
        peer_kind kind;
        const char *words;
        rs_status status;
        const char *why;
    } cases[] = {
        {PEER_BYE, "", RS_OK, "left"},
        {PEER_FAILED, "4 no room here", RS_LIMIT, "no room here"},
        {PEER_FAILED, "99 what", RS_PEER_LOST, "failed"},
        {PEER_FAILED, "", RS_PEER_LOST, "failed"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        side head, member;
        news seen = {0};
        peer *end;
        connect_sides(&head, &member, secret, secret);
        assert_int_equal(peer_open(head.channel, note, &seen, &end), RS_OK);
        channel_send(member.channel, (uint8_t)cases[i].kind, cases[i].words, strlen(cases[i].words));
        await_news(&seen);
        assert_int_equal(seen.status, cases[i].status);
        assert_non_null(strstr(seen.why, cases[i].why));
        peer_close(end);
        channel_close(member.channel);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_secret_opens),
        cmocka_unit_test(test_another_secret_is_refused_and_told),
        cmocka_unit_test(test_short_secrets_and_bad_addresses_are_refused),
        cmocka_unit_test(test_nobody_there),
        cmocka_unit_test(test_a_busy_head_is_waited_for),
        cmocka_unit_test(test_a_head_that_closes_is_dialled_again),
        cmocka_unit_test(test_a_changed_byte_is_found_wherever_it_is),
        cmocka_unit_test(test_a_connection_cut_anywhere_is_lost),
        cmocka_unit_test(test_frames_arrive_whole_and_in_order),
        cmocka_unit_test(test_a_stranger_does_not_keep_others_out),
        cmocka_unit_test(test_a_stranger_cannot_draw_out_the_proof),
        cmocka_unit_test(test_two_watched_ends_live_on),
        cmocka_unit_test(test_a_silent_end_is_lost),
        cmocka_unit_test(test_last_words_are_heard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
