/* probe_cmd.c: `ringspan probe`: what this machine does at best, printed and stored for the planner. */
#include <stdlib.h>

#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/profile.h"
#include "cli/progress.h"

static void add_row(table_text *table, const rs_probe *p, const char *name, const rs_rate *all, const rs_rate *one) {
    output_cell(table, "%s", name);
    for (const rs_rate *rate = all; rate != NULL; rate = rate == all && p->threads > 1 ? one : NULL) {
        output_cell(table, "%.2f", rate->median / 1e9);
        output_cell(table, "%.0f %%", 100 * (rate->most - rate->least) / rate->median);
    }
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
    printf("\nA copy counts bytes read and bytes written; a multiply-add is 2 operations. The spread is that\n"
           "from the slowest to the fastest repetition.\n\nstored in %s\n",
           path);
    return output_finish(0);
}

int probe_command(const args *a) {
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
