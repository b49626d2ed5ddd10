/* test_discover.c: a head that announces itself is found where it listens and as long as it waits, and several are told
 * apart. The network is the test's own and has a loopback device alone; tests/test_discover.py has hosts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "comm/discover.h"

static const double PATIENCE_S = 60; /* for what takes one or two: machines are busy */

/* Puts this thread, and those that it starts, into a network of their own; skips the test where it cannot. */
static void enter_network(void) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_LOOPBACK | IFF_RUNNING};
    if (unshare(CLONE_NEWNET) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) {
        print_message("a network of the test's own is not to be had here: %s\n", strerror(errno));
        skip();
    }
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    assert_int_equal(ioctl(fd, SIOCSIFFLAGS, &request), 0);
    close(fd);
}

/* A socket that listens, and the address at which it is found. */
static int listen_here(char address[CHANNEL_PEER_MAX]) {
    int listener;
    uint16_t port;
    assert_int_equal(channel_listen("127.0.0.1:0", &listener, &port), RS_OK);
    snprintf(address, CHANNEL_PEER_MAX, "127.0.0.1:%u", port);
    return listener;
}

static void test_one_head_or_several(void **state) {
    (void)state;
    enter_network();
    char address[2][CHANNEL_PEER_MAX];
    announcement *head[2];
    discover_head found;
    int listener[2] = {listen_here(address[0]), listen_here(address[1])};
    for (int i = 0; i < 2; i++) assert_int_equal(discover_announce("odd\x1b[31mone", listener[i], &head[i]), RS_OK);
    assert_int_equal(discover_find(PATIENCE_S, NULL, NULL, &found), RS_BAD_ARGUMENT);
    const char *said = rs_last_error();
    assert_non_null(strstr(said, "2 heads are announced: "));
    assert_non_null(strstr(said, address[0]));
    assert_non_null(strstr(said, address[1]));
    assert_non_null(strstr(said, "odd?[31mone at "));
    assert_non_null(strstr(said, "odd?[31mone #2 at "));
    assert_non_null(strstr(said, "'ringspan join 127.0.0.1:"));
    discover_withdraw(head[0]);
    assert_int_equal(discover_find(PATIENCE_S, NULL, NULL, &found), RS_OK);
    assert_string_equal(found.name, "odd?[31mone #2");
    assert_string_equal(found.address, address[1]);
    discover_withdraw(head[1]);
    for (int i = 0; i < 2; i++) close(listener[i]);
}

static bool refuse(void *user) {
    ++*(int *)user;
    return false;
}

static void test_nobody(void **state) {
    (void)state;
    enter_network();
    int asked = 0;
    discover_head found;
    double begin_s = clock_s();
    assert_int_equal(discover_find(0.3, NULL, NULL, &found), RS_PEER_LATE);
    assert_true(clock_s() - begin_s >= 0.3);
    assert_int_equal(discover_find(PATIENCE_S, refuse, &asked, &found), RS_CANCELLED);
    assert_int_equal(asked, 1);
    assert_true(clock_s() - begin_s < PATIENCE_S);
}

static void test_what_cannot_be_announced(void **state) {
    (void)state;
    enter_network();
    char address[CHANNEL_PEER_MAX];
    announcement *head;
    int listener = listen_here(address), everywhere;
    uint16_t port;
    assert_int_equal(discover_announce("", listener, &head), RS_BAD_ARGUMENT);
    assert_int_equal(channel_listen("0", &everywhere, &port), RS_OK);
    assert_int_equal(discover_announce("alpha", everywhere, &head), RS_IO);
    assert_non_null(strstr(rs_last_error(), "no network"));
    close(everywhere);
    close(listener);
    discover_withdraw(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_head_or_several),
        cmocka_unit_test(test_nobody),
        cmocka_unit_test(test_what_cannot_be_announced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
