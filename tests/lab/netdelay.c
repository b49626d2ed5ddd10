/* netdelay.c: a switch made of TAP devices whose links have a rate and a delay; tests/lab/lab.py puts one device into
 * the namespace of each host.
 *
 *     netdelay NAME:BYTES_PER_S:DELAY_S ...      one port each; a rate of 0 has no bound
 *
 * A frame leaves its host's link at the link's rate, enters the link of its destination at that one's rate, the two
 * overlapping as in a switch that cuts through, and arrives after the delay of the destination's port. Frames are timed
 * as on Ethernet, with preamble, checksum and gap; one that the kernel hands over whole for many (segmentation offload)
 * is timed as those many. A link that has fallen behind by QUEUE_BYTES drops what comes.
 *
 * It says "ready" and then obeys lines on standard input, answering each with "ok" or "error: ...":
 *
 *     rate PORT BYTES_PER_S | delay PORT SECONDS | down PORT | up PORT | stats PORT
 *
 * PORT counts from 0. The end of the input, SIGTERM and SIGINT end it. It sleeps until something is due. Each
 * departure follows from the one before, not from when that was sent, so that lateness does not add up. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <math.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/clock.h"

enum {
    PORTS_MAX = 64,
    FRAME_BYTES = 66 * 1024,  /* The longest IP packet, and the headers below it. */
    FRAMES_MAX = 8192,        /* In flight in all; memory is taken as it is touched, the same frames first. */
    QUEUE_BYTES = 512 * 1024, /* What a small switch has for a port: 4 ms at 1 Gbit/s. */
    BURST = 8,                /* Frames taken from one port before what is due is sent. */
    WIRE_MIN = 60,            /* The shortest Ethernet frame without its checksum, */
    WIRE_EXTRA = 24,          /* and what each has beyond the bytes seen here: preamble 8, checksum 4, gap 12. */
    LINE_BYTES = 256,
};

static const double LAG_MAX_S = 50e-6; /* More is not the timer but somebody else's time. */

typedef struct frame {
    struct frame *next;
    double due;
    size_t length; /* Of data: the offload header and the frame. */
    uint8_t data[FRAME_BYTES];
} frame;

typedef struct {
    int fd;
    bool down, has_mac;
    uint8_t mac[6];            /* Of the host: the source of the last frame that came from it. */
    double rate, delay;        /* Bytes a second or 0, seconds. */
    double up_free, down_free; /* When the link is free again, from the host and to it. */
    double due_last;
    frame *first, *last; /* In flight to the host, in order of due. */
    uint64_t sent, sent_bytes, dropped, cut;
    double late_sum, late_max; /* How long after their due time frames were sent. */
} port;

static port ports[PORTS_MAX];
static int n_ports;
static frame *free_frames;
static double lag; /* How long after the time asked for the kernel lately woke us up, on average. */
static volatile sig_atomic_t stopped;

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    fputs("netdelay: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    va_end(list);
    exit(1);
}

static void stop(int signal_number) {
    (void)signal_number;
    stopped = 1;
}

/* ---- Opening */

static void open_port(port *p, const char *text) {
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    size_t name_bytes = strcspn(text, ":");
    if (name_bytes == 0 || name_bytes >= IFNAMSIZ) fail("%s: a port's name has 1 to %d letters", text, IFNAMSIZ - 1);
    memcpy(request.ifr_name, text, name_bytes);
    char end;
    if (sscanf(text + name_bytes, ":%lf:%lf%c", &p->rate, &p->delay, &end) != 2 || !(p->rate >= 0 && p->delay >= 0)) {
        fail("%s: a port is NAME:BYTES_PER_S:DELAY_S, such as tap0:125000000:0.0005", text);
    }
    p->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (p->fd < 0) fail("cannot open /dev/net/tun (%s): run as root where the kernel has TUN/TAP", strerror(errno));
    if (ioctl(p->fd, TUNSETIFF, &request) < 0) {
        fail("cannot make the TAP device %s (%s): run as root, with a name that is not taken", request.ifr_name,
             strerror(errno));
    }
    /* Frames stay whole, up to 64 KiB, and without checksums on their way from host to host: the cost of a byte is
     * two copies, whatever the MTU. */
    if (ioctl(p->fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) < 0) {
        fail("%s: the kernel has no offloads for TAP devices (%s)", request.ifr_name, strerror(errno));
    }
}

static void open_frames(void) {
    frame *all = mmap(NULL, FRAMES_MAX * sizeof(frame), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) fail("no memory for %d frames (%s)", FRAMES_MAX, strerror(errno));
    for (int i = FRAMES_MAX - 1; i >= 0; i--) {
        all[i].next = free_frames;
        free_frames = &all[i];
    }
}

/* A network does not wait for its hosts' programs, so this process goes before them; it sleeps nearly always. Where the
 * system refuses, times are as good as the machine is idle. */
static void go_first(void) {
    struct sched_param param = {.sched_priority = 1};
    if (sched_setscheduler(0, SCHED_FIFO, &param) < 0) {
        fprintf(stderr, "netdelay: no real-time priority (%s): busy hosts will make frames late\n", strerror(errno));
    }
    prctl(PR_SET_TIMERSLACK, 1UL); /* Else the kernel may wake up 50 us late. */
}

/* ---- Frames */

static frame *take_frame(void) {
    frame *f = free_frames;
    if (f != NULL) free_frames = f->next;
    return f;
}

static void give_frame(frame *f) {
    f->next = free_frames;
    free_frames = f;
}

static const uint8_t *ethernet(const frame *f) {
    return f->data + sizeof(struct virtio_net_hdr);
}

/* What the frame takes on the wire: a whole of many segments has their headers many times. */
static double wire_bytes(const frame *f) {
    struct virtio_net_hdr header;
    memcpy(&header, f->data, sizeof header);
    size_t length = f->length - sizeof header;
    size_t tcp = header.csum_start;
    if (header.gso_type == VIRTIO_NET_HDR_GSO_NONE || header.gso_size == 0 || tcp + 20 > length) {
        return (length > WIRE_MIN ? length : WIRE_MIN) + WIRE_EXTRA;
    }
    size_t headers = tcp + (ethernet(f)[tcp + 12] >> 4) * 4;
    size_t payload = headers < length ? length - headers : 0;
    size_t segments = (payload + header.gso_size - 1) / header.gso_size;
    return payload + segments * (headers + WIRE_EXTRA);
}

/* Puts bytes on one direction of a link, not before `begin`; false where too much waits there already. `begin` becomes
 * the time of the first byte, `end` that of the last. */
static bool put_on_link(double *free_at, double rate, double bytes, double *begin, double *end) {
    *end = *begin;
    if (rate == 0) return true;
    if ((*free_at - *begin) * rate > QUEUE_BYTES) return false;
    if (*free_at > *begin) *begin = *free_at;
    *free_at = *end = *begin + bytes / rate;
    return true;
}

/* Hands f over to a port; its bytes leave the link they came by between begin and end. */
static void queue_frame(port *to, frame *f, double begin, double end) {
    double down_begin = begin, down_end;
    if (to->down || !put_on_link(&to->down_free, to->rate, wire_bytes(f), &down_begin, &down_end)) {
        *(to->down ? &to->cut : &to->dropped) += 1;
        give_frame(f);
        return;
    }
    f->due = (end > down_end ? end : down_end) + to->delay;
    if (f->due < to->due_last) f->due = to->due_last; /* A shorter delay does not let frames overtake. */
    to->due_last = f->due;
    f->next = NULL;
    *(to->first != NULL ? &to->last->next : &to->first) = f;
    to->last = f;
}

static port *find_port(const uint8_t mac[6]) {
    for (int i = 0; i < n_ports; i++) {
        if (ports[i].has_mac && memcmp(ports[i].mac, mac, 6) == 0) return &ports[i];
    }
    return NULL;
}

static void forward(port *from, frame *f) {
    const uint8_t *mac = ethernet(f);
    double begin = clock_s(), end;
    if (from->down || !put_on_link(&from->up_free, from->rate, wire_bytes(f), &begin, &end)) {
        *(from->down ? &from->cut : &from->dropped) += 1;
        give_frame(f);
        return;
    }
    memcpy(from->mac, mac + 6, 6);
    from->has_mac = true;
    port *to = find_port(mac);
    if (to != NULL && to != from) {
        queue_frame(to, f, begin, end);
        return;
    }
    for (int i = 0; to == NULL && i < n_ports; i++) { /* A broadcast, or a host that has not spoken yet. */
        frame *copy = &ports[i] != from ? take_frame() : NULL;
        if (copy == NULL) continue;
        copy->length = f->length;
        memcpy(copy->data, f->data, f->length);
        queue_frame(&ports[i], copy, begin, end);
    }
    give_frame(f);
}

/* The device is gone with the namespace that it was in. */
static void lose_port(port *p) {
    fprintf(stderr, "netdelay: the device of port %d is gone, and with it the port\n", (int)(p - ports));
    close(p->fd);
    p->fd = -1;
    p->down = true;
}

static void receive(port *from) {
    for (int i = 0; i < BURST && from->fd >= 0; i++) {
        static uint8_t overflow[FRAME_BYTES];
        frame *f = take_frame();
        ssize_t bytes = read(from->fd, f != NULL ? f->data : overflow, FRAME_BYTES);
        if (bytes < 0 && errno != EAGAIN && errno != EINTR) lose_port(from);
        if (f == NULL && bytes > 0) from->dropped++;
        if (f == NULL) continue;
        f->length = bytes > 0 ? (size_t)bytes : 0;
        if (f->length >= sizeof(struct virtio_net_hdr) + 14) {
            forward(from, f);
        } else {
            give_frame(f);
        }
        if (bytes < 0) return;
    }
}

/* Sends what is due to every host; the time of the next departure, or INFINITY. */
static double send_due(void) {
    double next = INFINITY;
    for (port *p = ports; p < ports + n_ports; p++) {
        while (p->first != NULL) {
            frame *f = p->first;
            double late = clock_s() - f->due;
            if (late < 0) {
                if (f->due < next) next = f->due;
                break;
            }
            p->first = f->next;
            if (p->fd >= 0 && write(p->fd, f->data, f->length) == (ssize_t)f->length) {
                p->sent++;
                p->sent_bytes += f->length - sizeof(struct virtio_net_hdr);
                p->late_sum += late;
                if (late > p->late_max) p->late_max = late;
            } else {
                p->cut++; /* The host has its end of the link down. */
            }
            give_frame(f);
        }
    }
    return next;
}

/* ---- Commands */

static void cut_link(port *p) {
    p->down = true;
    while (p->first != NULL) {
        frame *f = p->first;
        p->first = f->next;
        p->cut++;
        give_frame(f);
    }
}

static void obey(const char *line) {
    char verb[16], end;
    int index;
    double value = 0;
    int n = sscanf(line, "%15s %d %lf %c", verb, &index, &value, &end);
    bool has_value = n == 3 && value >= 0 && value < INFINITY;
    if (n < 2 || index < 0 || index >= n_ports) {
        printf("error: no command: %s (VERB PORT [VALUE], ports 0 to %d)\n", line, n_ports - 1);
        return;
    }
    port *p = &ports[index];
    if (strcmp(verb, "rate") == 0 && has_value) {
        p->rate = value;
    } else if (strcmp(verb, "delay") == 0 && has_value) {
        p->delay = value;
    } else if (strcmp(verb, "down") == 0 && n == 2) {
        cut_link(p);
    } else if (strcmp(verb, "up") == 0 && n == 2 && p->fd >= 0) {
        p->down = false;
    } else if (strcmp(verb, "stats") == 0 && n == 2) {
        printf("ok sent=%llu sent_bytes=%llu dropped=%llu cut=%llu late_mean_s=%.9f late_max_s=%.9f\n",
               (unsigned long long)p->sent, (unsigned long long)p->sent_bytes, (unsigned long long)p->dropped,
               (unsigned long long)p->cut, p->sent > 0 ? p->late_sum / p->sent : 0.0, p->late_max);
        return;
    } else {
        printf("error: no command: %s (rate PORT BYTES_PER_S, delay PORT SECONDS, down, up or stats PORT)\n", line);
        return;
    }
    puts("ok");
}

/* Reads what standard input has and obeys every whole line of it; false at its end. */
static bool read_commands(void) {
    static char line[LINE_BYTES];
    static size_t length;
    char text[LINE_BYTES];
    ssize_t bytes = read(STDIN_FILENO, text, sizeof text);
    if (bytes <= 0) return bytes < 0 && errno == EINTR;
    for (ssize_t i = 0; i < bytes; i++) {
        if (text[i] != '\n') {
            if (length < sizeof line - 1) line[length++] = text[i];
            continue;
        }
        line[length] = '\0';
        length = 0;
        obey(line);
        fflush(stdout);
    }
    return true;
}

/* ---- The loop */

/* A timer wakes us up some 20 us late in a virtual machine, where a core that sleeps is slow to come back. So it is set
 * that much earlier, and what is then left, a few microseconds, is waited for awake. */
static void learn_lag(double late) {
    if (late > LAG_MAX_S) late = LAG_MAX_S;
    lag += (late - lag) / 32;
}

static void wait_for_work(double next) {
    struct pollfd fds[PORTS_MAX + 1] = {{.fd = STDIN_FILENO, .events = POLLIN}};
    for (int i = 0; i < n_ports; i++) fds[i + 1] = (struct pollfd){.fd = ports[i].fd, .events = POLLIN};
    double wait = next - clock_s(), wake = next - lag;
    wait = wait > lag ? wait - lag : 0;
    struct timespec time = {.tv_sec = wait < INFINITY ? (time_t)wait : 0};
    if (wait < INFINITY) time.tv_nsec = (long)((wait - (double)time.tv_sec) * 1e9);
    sigset_t none;
    sigemptyset(&none); /* Only here do signals come in, so none slips between the test and the wait. */
    int n = ppoll(fds, (nfds_t)n_ports + 1, wait < INFINITY ? &time : NULL, &none);
    if (n == 0 && wait > 0) learn_lag(clock_s() - wake);
    if (n <= 0) return;
    for (int i = 0; i < n_ports; i++) {
        if (fds[i + 1].revents & POLLERR) {
            lose_port(&ports[i]); /* Reading would say "try again" for as long as the device takes to go. */
        } else if (fds[i + 1].revents != 0) {
            receive(&ports[i]);
        }
    }
    if (fds[0].revents != 0 && !read_commands()) stopped = 1;
}

int main(int argc, char **argv) {
    if (argc < 2 || argc - 1 > PORTS_MAX) fail("usage: netdelay NAME:BYTES_PER_S:DELAY_S ... (1 to %d)", PORTS_MAX);
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGINT);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    signal(SIGPIPE, SIG_IGN); /* Whoever does not read the answers has closed the input, too. */
    open_frames();
    while (n_ports < argc - 1) {
        open_port(&ports[n_ports], argv[n_ports + 1]);
        n_ports++;
    }
    go_first();
    puts("ready");
    fflush(stdout);
    while (!stopped) wait_for_work(send_due());
    return 0;
}
