/* ucx_tool.c: times exchanges between processes of this machine over UCX. Not a test.
 *
 *   ucx_tool RANKS [roomy] [asleep] [hosts]
 *
 * prints the time of an all-gather of 8 KB from each rank, and the rate of a 64 MB exchange in the background, to and
 * from each rank, with the rank's thread asleep meanwhile and computing meanwhile. `roomy`: ranks believe to have a
 * core each. `asleep`: rank 0 lets the others fall asleep in their wait, and the time is that of two gathers: one that
 * wakes them and one that needs them awake.
 * `hosts`: each rank is a host of its own, in the network namespace rank0, rank1, ... that `ip netns add` has made, and
 * in new namespaces for host name and shared memory. UCX_TLS=tcp or UCX_TLS=shm chooses the network. */
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/rank_processes.h"

enum { GATHER_BYTES = 8192, GATHERS = 2000, SLEEPY_GATHERS = 100, BULK_BYTES = 64 << 20, BULKS = 5 };

static bool asleep;
static uint8_t *buffers[2 * PROCESSES_MAX]; /* to send, then to receive */

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_size);
    return values[n / 2];
}

/* Median seconds of a gather; asleep, of two of which rank 0 begins the first long after the others. */
static rs_status time_gathers(comm *c, double *seconds) {
    static double times[GATHERS];
    comm_part parts[PROCESSES_MAX];
    int n = asleep ? SLEEPY_GATHERS : GATHERS;
    for (uint32_t p = 0; p < c->ranks; p++) parts[p] = (comm_part){buffers[PROCESSES_MAX + p], GATHER_BYTES};
    for (int i = 0; i < n; i++) {
        if (asleep && c->rank == 0) usleep(5000);
        double begin_s = clock_s();
        for (int j = 0; j < 1 + asleep; j++) RS_TRY(comm_gather(c, buffers[0], GATHER_BYTES, parts));
        times[i] = clock_s() - begin_s;
    }
    *seconds = median(times, n);
    return RS_OK;
}

/* Median seconds of an exchange in the background, while the rank sleeps (in finish) or computes (`busy`). */
static rs_status time_bulk(comm *c, bool busy, double *seconds) {
    double times[BULKS];
    comm_part out[PROCESSES_MAX], in[PROCESSES_MAX];
    for (uint32_t p = 0; p < c->ranks; p++) {
        out[p] = (comm_part){buffers[p], BULK_BYTES};
        in[p] = (comm_part){buffers[PROCESSES_MAX + p], BULK_BYTES};
    }
    for (int i = 0; i < BULKS; i++) {
        double begin_s = clock_s();
        RS_TRY(c->begin(c, LANE_WEIGHTS, out, in));
        for (volatile uint64_t n = 0; busy && n < 100000000; n++) continue;
        double computed_s = clock_s();
        RS_TRY(c->finish(c, LANE_WEIGHTS));
        times[i] = clock_s() - (busy ? computed_s : begin_s);
    }
    *seconds = median(times, BULKS);
    return RS_OK;
}

static rs_status measure(comm *c) {
    double gather_s, bulk_s, rest_s;
    for (uint32_t i = 0; i < 2 * PROCESSES_MAX; i++) {
        bool used = i % PROCESSES_MAX < c->ranks;
        buffers[i] = used ? malloc(BULK_BYTES) : NULL;
        if (used) memset(buffers[i], (int)i, BULK_BYTES);
    }
    RS_TRY(time_gathers(c, &gather_s));
    RS_TRY(time_bulk(c, false, &bulk_s));
    RS_TRY(time_bulk(c, true, &rest_s));
    if (c->rank != 0) return RS_OK;
    double mb = 1e-6 * BULK_BYTES * (c->ranks - 1);
    printf("%u ranks: %s of 8 KB %.1f us; 64 MB in the background %.0f MB/s each way, "
           "%.1f ms left to wait after computing\n",
           c->ranks, asleep ? "two all-gathers after sleep" : "all-gather", 1e6 * gather_s, mb / bulk_s, 1e3 * rest_s);
    return RS_OK;
}

static void work(rank_processes *all, ucx_comm *u, rank_report *report) {
    report->status = measure(ucx_comm_of(u));
    if (report->status != RS_OK) ucx_comm_of(u)->abort(ucx_comm_of(u));
    (void)all;
}

static void become_host(uint32_t rank) {
    char path[64], name[16];
    snprintf(name, sizeof name, "rank%u", rank);
    snprintf(path, sizeof path, "/run/netns/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, CLONE_NEWNET) != 0 || unshare(CLONE_NEWUTS | CLONE_NEWIPC) != 0) {
        perror(path);
        exit(1);
    }
    close(fd);
    sethostname(name, strlen(name));
}

int main(int argc, char **argv) {
    int ranks = argc > 1 ? atoi(argv[1]) : 0, failed = 0;
    bool roomy = false, hosts = false;
    for (int i = 2; i < argc; i++) {
        roomy |= strcmp(argv[i], "roomy") == 0;
        asleep |= strcmp(argv[i], "asleep") == 0;
        hosts |= strcmp(argv[i], "hosts") == 0;
    }
    if (ranks < 2 || ranks > PROCESSES_MAX) {
        fprintf(stderr, "usage: ucx_tool RANKS [roomy] [asleep] [hosts], with 2 to %d ranks\n", PROCESSES_MAX);
        return 2;
    }
    rank_processes *all = processes_start((rank_processes){.ranks = (uint32_t)ranks,
                                                           .roomy = roomy,
                                                           .deadline_s = INFINITY,
                                                           .prepare = hosts ? become_host : NULL,
                                                           .work = work});
    for (int r = 0; r < ranks; r++) processes_wait(all, (uint32_t)r);
    for (int r = 0; r < ranks; r++) {
        if (all->reports[r].status == RS_OK) continue;
        fprintf(stderr, "%s\n", all->reports[r].error);
        failed = 1;
    }
    return failed;
}
