/* plan_cmd.c: `ringspan plan`: who would hold what, in bytes, and whether it fits. */
#include <stdlib.h>

#include "cli/commands.h"
#include "cli/forecast.h"
#include "cli/hosts.h"
#include "cli/machines.h"
#include "cli/profile.h"
#include "cli/report.h"

static bool fits(const rs_plan_info *info) {
    return info->total <= info->limit;
}

/* What reading alone takes to decode a token: all ranks read through this machine's memory bus. */
typedef struct decode_floor {
    bool known; /* there is a profile */
    profile profile;
    double empty_ms, full_ms; /* at depth 0 and behind a full context */
} decode_floor;

static decode_floor find_floor(const rs_plan *plan, const rs_plan_info *info) {
    decode_floor f = {0};
    double weights = 0, kv = 0;
    f.known = profile_load(&f.profile);
    if (!f.known) return f;
    for (uint32_t i = 0; i < info->options.ranks; i++) {
        rs_plan_rank r;
        rs_plan_describe_rank(plan, i, &r);
        weights += (double)r.weights;
        kv += (double)r.kv;
    }
    f.empty_ms = 1000 * weights / f.profile.read_bytes_per_s;
    f.full_ms = 1000 * (weights + kv) / f.profile.read_bytes_per_s;
    return f;
}

static void print_floor(const decode_floor *f, uint32_t context) {
    if (!f->known) {
        printf("\n'ringspan probe' measures this machine; then the least time of a token is told here\n");
        return;
    }
    printf("\nreading takes at least %.2f ms a token at depth 0 and %.2f ms at depth %u\n"
           "(%.1f GB/s: 'ringspan probe' of %s, %u thread%s%s)\n",
           f->empty_ms, f->full_ms, context, f->profile.read_bytes_per_s / 1e9, output_safe(f->profile.date).text,
           f->profile.threads, f->profile.threads == 1 ? "" : "s", f->profile.busy ? ", on a busy machine" : "");
}

static json_t *floor_json(const decode_floor *f) {
    if (!f->known) return json_null();
    return json_pack("{sf si sf sf}", "read_bytes_per_s", f->profile.read_bytes_per_s, "threads",
                     (int)f->profile.threads, "empty_ms", f->empty_ms, "full_ms", f->full_ms);
}

static int print_json(const args *a, const rs_model_info *model, const rs_plan *plan, const rs_plan_info *info,
                      const forecast *f) {
    decode_floor lowest = find_floor(plan, info);
    return output_json(json_pack(
        "{so so so s{sI sI sI sI sI sI} sI si sb so so}", "model", report_model(a->model, model), "options",
        report_options(&info->options), "ranks", report_ranks(plan, info->options.context), "bytes", "weights_file",
        (json_int_t)info->weights, "program", (json_int_t)info->program, "tables", (json_int_t)info->tables, "ranks",
        (json_int_t)info->ranks, "total", (json_int_t)info->total, "limit", (json_int_t)info->limit, "context_max",
        (json_int_t)info->context_max, "page_tokens", (int)info->page_tokens, "fits", fits(info), "decode_floor",
        floor_json(&lowest), "forecast", f != NULL ? forecast_json(f) : json_null()));
}

static void print_title(const rs_model_info *model, const rs_options *o) {
    printf("%s (%s, %s, %.1f M parameters)\n", output_safe(model->name[0] != 0 ? model->name : "unnamed").text,
           model->architecture, model->weights, (double)model->parameters / 1e6);
    printf("context %u tokens, %u rank%s, split %s, K %s, V %s, chunk %u", o->context, o->ranks,
           o->ranks == 1 ? "" : "s", args_split_text(o).text, args_kv_name(o->kv_k), args_kv_name(o->kv_v), o->chunk);
}

static int print_text(const rs_model_info *model, const rs_plan *plan, const rs_plan_info *info, const forecast *f) {
    const rs_options *o = &info->options;
    print_title(model, o);
    printf(", %u threads\n\n", o->threads);
    report_plan_table(plan, stdout);
    printf("\nKV, weights read for a token, working and wire buffers in MiB.\n");
    printf("\nmodel file (shared by all ranks)  %14s\n", output_bytes(info->weights).text);
    printf("KV, activations, wire of all      %14s\n", output_bytes(info->ranks).text);
    printf("page table and token timeline     %14s\n", output_bytes(info->tables).text);
    printf("program, tokenizer, libraries     %14s\n", output_bytes(info->program).text);
    printf("total                             %14s\n", output_bytes(info->total).text);
    printf("limit                             %14s\n", output_bytes(info->limit).text);
    if (info->context_max > 0) printf("largest context that fits         %7u tokens\n", info->context_max);
    decode_floor lowest = find_floor(plan, info);
    print_floor(&lowest, o->context);
    if (f != NULL) forecast_print_speed(f);
    return output_finish(0);
}

static int refuse_size(const rs_plan_info *info) {
    size_text total = output_bytes(info->total), limit = output_bytes(info->limit);
    if (info->context_max == 0) {
        return output_refuse("%s are needed and %s allowed; no context fits, so raise --memory-limit or use a smaller "
                             "model",
                             total.text, limit.text);
    }
    return output_refuse("%s are needed and %s allowed; the largest context that fits is --ctx %u", total.text,
                         limit.text, info->context_max);
}

/* What the plan takes on this machine, as the stored profile knows it; NULL without one of its operations' rates. */
static int price_here(const args *a, const rs_model *model, forecast **out) {
    profile here;
    *out = NULL;
    if (!profile_load(&here) || here.machine.threads == 0) return 0;
    forecast *f = calloc(1, sizeof *f);
    if (f == NULL) return output_refuse("no memory for the forecast");
    f->cluster.count = 1;
    f->cluster.local = true;
    f->cluster.machine[0] = here.machine;
    int code = forecast_make(f, model, &a->engine, &a->depths);
    if (code == 0) {
        *out = f;
    } else {
        free(f);
    }
    return code;
}

static int plan_here(const args *a, const rs_model *model, const rs_model_info *model_info) {
    rs_plan *plan = NULL;
    rs_plan_info info;
    forecast *f;
    int code = output_status(rs_plan_make(model, &a->engine, &plan));
    if (code == 0) code = price_here(a, model, &f);
    if (code == 0) {
        rs_plan_describe(plan, &info);
        code = a->json ? print_json(a, model_info, plan, &info, f) : print_text(model_info, plan, &info, f);
        if (code == 0 && !fits(&info)) code = refuse_size(&info);
        free(f);
    }
    rs_plan_free(plan);
    return code;
}

/* The machines that join now, for this measurement alone. */
static int measure_hosts(const args *a, const rs_model *model, rs_machines *out) {
    rs_cluster *cluster = NULL;
    int code = hosts_open(a, model, &cluster);
    if (code == 0) code = hosts_measure(cluster, out);
    rs_cluster_close(cluster);
    return code;
}

static int plan_cluster(const args *a, const rs_model *model, const rs_model_info *model_info) {
    uint64_t limit = a->engine.memory_limit;
    if (a->hosts == 0 && limit > 0) {
        return output_refuse("--memory-limit is for this machine; with --cluster a machine's memory_bytes say it");
    }
    forecast *f = calloc(1, sizeof *f);
    if (f == NULL) return output_refuse("no memory for the forecast");
    int code = a->hosts > 0 ? measure_hosts(a, model, &f->cluster) : machines_load(a->cluster, &f->cluster);
    if (limit > 0) f->cluster.machine[0].memory_bytes = limit;
    if (code == 0) code = forecast_make(f, model, &a->engine, &a->depths);
    if (code != 0) goto end;
    const rs_price *choice = &f->list[0];
    if (a->json) {
        code = output_json(json_pack("{so so sb so}", "model", report_model(a->model, model_info), "options",
                                     report_options(&choice->options), "fits", choice->fits, "forecast",
                                     forecast_json(f)));
    } else {
        print_title(model_info, &choice->options);
        printf("\n\n");
        forecast_print_machines(f);
        forecast_print_speed(f);
        code = output_finish(0);
    }
    if (code == 0 && !choice->fits) code = forecast_refuse(f);
end:
    free(f);
    return code;
}

int plan_command(const args *a) {
    rs_model *model = NULL;
    rs_model_info info;
    int code = output_status(rs_model_open(a->model, &model));
    if (code != 0) return code;
    rs_model_describe(model, &info);
    code = a->cluster != NULL || a->hosts > 0 ? plan_cluster(a, model, &info) : plan_here(a, model, &info);
    rs_model_close(model);
    return code;
}
