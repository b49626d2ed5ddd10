/* probe_cmd.c: `ringspan probe`: what this machine does at best, printed and stored for the planner. */
#include <stdlib.h>

#include "cli/commands.h"
#include "cli/hosts.h"
#include "cli/interrupt.h"
#include "cli/machines.h"
#include "cli/profile.h"
#include "cli/progress.h"

static void add_row(table_text *table, const rs_probe *p, const char *name, const rs_rate *all, const rs_rate *one) {
    output_cell(table, "%s", name);
    for (const rs_rate *rate = all; rate != NULL; rate = rate == all && p->threads > 1 ? one : NULL) {
        output_cell(table, "%.2f", rate->median / 1e9);
        output_cell(table, "%.0f %%", 100 * (rate->most - rate->least) / rate->median);
    }
}

/* A row for each format that one of the three objects of `rates` knows; of a list of rates the first. */
static void print_rates(json_t *rates, const char *title, const char *const *keys, const char *const *units,
                        size_t count) {
    table_text *table = calloc(1, sizeof *table);
    const char *format;
    json_t *first, *value;
    if (table == NULL) return;
    table->columns = 1 + count;
    output_cell(table, "%s", title);
    for (size_t i = 0; i < count; i++) output_cell(table, "%s", units[i]);
    json_object_foreach(json_object_get(rates, keys[0]), format, first) {
        output_cell(table, "%s", format);
        for (size_t i = 0; i < count; i++) {
            value = json_object_get(json_object_get(rates, keys[i]), format);
            output_cell(table, "%.1f",
                        json_number_value(json_is_array(value) ? json_array_get(value, 0) : value) / 1e9);
        }
    }
    putchar('\n');
    output_table(table, stdout);
    free(table);
}

/* What the planner takes: the engine's own operations, all threads together. */
static void print_operations(const rs_machine *m) {
    static const char *const weights[] = {"weights_bytes_per_s", "weights_few_flop_per_s", "weights_many_flop_per_s"};
    static const char *const weights_units[] = {"1 token GB/s", "8 tokens GFLOP/s", "256 tokens GFLOP/s"};
    static const char *const attend[] = {"attend_bytes_per_s", "attend_many_flop_per_s"};
    static const char *const attend_units[] = {"1 token GB/s", "128 tokens GFLOP/s"};
    json_t *machine = machine_json(m), *rates = json_object_get(machine, "rates");
    print_rates(rates, "weights", weights, weights_units, 3);
    print_rates(rates, "attention", attend, attend_units, 2);
    printf("\nan exchange between ranks takes %.1f us with a core each, %.1f us with less\n", 1e6 * m->local.latency_s,
           1e6 * m->crowded.latency_s);
    json_decref(machine);
}

static int print_text(const rs_probe *p, const char *path) {
    table_text *table = calloc(1, sizeof *table);
    if (table == NULL) return output_refuse("no memory for the table");
    printf("%s, %u cores with %u hardware threads, %u NUMA node%s, %s of memory\n", output_safe(p->cpu).text, p->cores,
           p->cpus, p->numa_nodes, p->numa_nodes == 1 ? "" : "s", output_bytes(p->memory_bytes).text);
    printf("last-level cache %s, buffer %s, kernels %s, int8 by %s\n\n",
           p->cache_bytes > 0 ? output_bytes(p->cache_bytes).text : "unknown", output_bytes(p->buffer_bytes).text,
           p->kernels, p->int8_by);
    table->columns = p->threads > 1 ? 5 : 3;
    output_cell(table, "median of %u", p->repetitions);
    output_cell(table, "%u thread%s", p->threads, p->threads == 1 ? "" : "s");
    output_cell(table, "spread");
    if (p->threads > 1) {
        output_cell(table, "1 thread");
        output_cell(table, "spread");
    }
    add_row(table, p, "read GB/s", &p->all.read_bytes_per_s, &p->one.read_bytes_per_s);
    add_row(table, p, "copy GB/s", &p->all.copy_bytes_per_s, &p->one.copy_bytes_per_s);
    add_row(table, p, "FP32 GFLOP/s", &p->all.fp32_flop_per_s, &p->one.fp32_flop_per_s);
    add_row(table, p, "INT8 GOP/s", &p->all.int8_op_per_s, &p->one.int8_op_per_s);
    output_table(table, stdout);
    free(table);
    if (p->cpu_share < PROFILE_BUSY) {
        printf(
            "\nThe threads ran %.0f %% of the time: other programs are busy, so the machine can do more than this.\n",
            100 * p->cpu_share);
    }
    print_operations(&p->machine);
    printf("\nA copy counts bytes read and bytes written; a multiply-add is 2 operations. The spread is that\n"
           "from the slowest to the fastest repetition.\n\nstored in %s\n",
           path);
    return output_finish(0);
}

/* By hand: a table of cells would not hold the links of 64 machines. */
static void print_links(const rs_machines *m) {
    printf("%-24s  %-24s  %10s  %8s\n", "from", "to", "latency us", "Gbit/s");
    for (uint32_t i = 0; i < m->count; i++) {
        for (uint32_t k = 0; k < m->count; k++) {
            char from[32], to[32];
            if (i == k) continue;
            snprintf(from, sizeof from, "%u %.20s", i, output_safe(m->machine[i].name).text);
            snprintf(to, sizeof to, "%u %.20s", k, output_safe(m->machine[k].name).text);
            printf("%-24s  %-24s  %10.1f  %8.2f\n", from, to, 1e6 * m->link[i][k].latency_s,
                   8e-9 * m->link[i][k].bytes_per_s);
        }
    }
}

/* What a cluster's machines say of themselves, and their links, for `plan --cluster`. */
static int probe_hosts(const args *a) {
    rs_cluster *cluster = NULL;
    rs_machines *machines = calloc(1, sizeof *machines);
    profile_file file = {0};
    json_t *json = NULL;
    if (machines == NULL) return output_refuse("no memory for the machines");
    int code = a->output != NULL ? profile_begin(a->output, &file) : 0;
    if (code == 0) code = hosts_open(a, NULL, &cluster);
    if (code == 0) code = hosts_measure(cluster, machines);
    rs_cluster_close(cluster);
    if (code == 0 && a->output != NULL) {
        json = machines_json(machines);
        code = profile_commit(&file, json);
    } else if (a->output != NULL) {
        profile_abandon(&file);
    }
    json_decref(json);
    if (code == 0 && a->json) code = output_json(machines_json(machines));
    if (code == 0 && !a->json) {
        print_links(machines);
        printf("\nLatency: a small exchange with both ends ready. %s\n",
               a->output != NULL ? "Stored; 'ringspan plan --cluster' reads it."
                                 : "-o FILE stores it for plan --cluster.");
        code = output_finish(0);
    }
    free(machines);
    return code;
}

int probe_command(const args *a) {
    if (a->hosts > 0) return probe_hosts(a);
    profile_file file;
    progress bar;
    rs_probe probe;
    int code = profile_begin(a->output, &file); /* first, so that nobody waits for what cannot be stored */
    if (code != 0) return code;
    interrupt_watch();
    progress_begin(&bar, "probe", 1, a->quiet);
    bar.unit = NULL;
    rs_status status = rs_probe_run(&a->engine, progress_update, &bar, &probe);
    progress_end(&bar);
    if (status != RS_OK) {
        profile_abandon(&file);
        return output_status(status);
    }
    json_t *json = profile_of(&probe);
    code = profile_commit(&file, json);
    if (code != 0) {
        json_decref(json);
        return code;
    }
    if (a->json) return output_json(json);
    json_decref(json);
    return print_text(&probe, file.path);
}
