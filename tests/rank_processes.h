/* rank_processes.h: ranks as forked processes that meet over UCX; addresses and reports lie in memory they share. */
#ifndef RS_TESTS_RANK_PROCESSES_H
#define RS_TESTS_RANK_PROCESSES_H

#include <assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "comm/ucx.h"

enum { PROCESSES_MAX = 8, ADDRESS_BYTES_MAX = 8192 };

typedef struct rank_report {
    atomic_uint rounds; /* done, as told by the rank */
    rs_status status;
    char error[STATUS_TEXT_MAX];
    double ended_s; /* clock_s() */
    double number;  /* what the work measured */
} rank_report;

typedef struct rank_processes {
    uint32_t ranks;
    bool roomy;
    double deadline_s;
    void (*prepare)(uint32_t rank); /* before the rank uses UCX; may be NULL */
    void (*work)(struct rank_processes *all, ucx_comm *u, rank_report *report);
    atomic_uint published, ended; /* ranks */
    pid_t pids[PROCESSES_MAX];
    size_t address_bytes[PROCESSES_MAX];
    uint8_t addresses[PROCESSES_MAX][ADDRESS_BYTES_MAX];
    rank_report reports[PROCESSES_MAX];
} rank_processes;

static inline void processes_nap(void) {
    usleep(1000);
}

static inline rs_status processes_connect(rank_processes *all, uint32_t rank, ucx_comm *u) {
    comm_part addresses[PROCESSES_MAX];
    const void *address = ucx_address(u, &all->address_bytes[rank]);
    assert(all->address_bytes[rank] <= ADDRESS_BYTES_MAX);
    memcpy(all->addresses[rank], address, all->address_bytes[rank]);
    atomic_fetch_add(&all->published, 1);
    while (atomic_load(&all->published) < all->ranks) processes_nap();
    for (uint32_t p = 0; p < all->ranks; p++) addresses[p] = (comm_part){all->addresses[p], all->address_bytes[p]};
    RS_TRY(ucx_connect(u, rank, all->ranks, addresses, 1, 60.0));
    ucx_comm_of(u)->deadline_s = all->deadline_s;
    return RS_OK;
}

static inline void processes_child(rank_processes *all, uint32_t rank) {
    rank_report *report = &all->reports[rank];
    ucx_comm *u = NULL;
    if (all->prepare != NULL) all->prepare(rank);
    report->status = ucx_open(all->roomy, &u);
    if (report->status == RS_OK) report->status = processes_connect(all, rank, u);
    if (report->status == RS_OK) all->work(all, u, report);
    snprintf(report->error, sizeof report->error, "%s", report->status == RS_OK ? "" : rs_last_error());
    report->ended_s = clock_s();
    atomic_fetch_add(&all->ended, 1);
    ucx_close(u);
    fflush(NULL);
    _exit(0);
}

/* Starts the ranks. To be called before this process has used UCX itself: a fork does not take threads along. */
static inline rank_processes *processes_start(rank_processes wanted) {
    rank_processes *all = mmap(NULL, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert(all != MAP_FAILED && wanted.ranks <= PROCESSES_MAX);
    *all = wanted;
    fflush(NULL);
    for (uint32_t r = 0; r < all->ranks; r++) {
        pid_t pid = fork();
        assert(pid >= 0);
        if (pid == 0) processes_child(all, r);
        all->pids[r] = pid;
    }
    return all;
}

/* Waits for the end of a rank; once for each. UCX takes a killed process for alive until its parent has done so. */
static inline void processes_wait(rank_processes *all, uint32_t rank) {
    waitpid(all->pids[rank], NULL, 0);
}

#endif
