/* hosts.c: finds the secret and leads or joins a cluster. */
#include "cli/hosts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/forecast.h"
#include "cli/interrupt.h"
#include "cli/profile.h"

static const char listen_default[] = "7777";
enum { JOIN_WAIT_S = 60, SECRET_MAX = 4096 };

static int read_secret_file(const char *path, char *secret, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) return output_refuse("cannot read the secret in %s: %s", path, strerror(errno));
    *bytes = fread(secret, 1, SECRET_MAX, file);
    bool failed = ferror(file) != 0, longer = !failed && fgetc(file) != EOF;
    fclose(file);
    if (failed) return output_refuse("cannot read the secret in %s", path);
    if (longer) return output_refuse("the secret in %s is longer than %d bytes", path, SECRET_MAX);
    while (*bytes > 0 && (secret[*bytes - 1] == '\n' || secret[*bytes - 1] == '\r')) --*bytes;
    return 0;
}

static int find_secret(const args *a, char *secret, size_t *bytes) {
    if (a->secret_file != NULL) return read_secret_file(a->secret_file, secret, bytes);
    const char *given = getenv("RINGSPAN_SECRET");
    if (given == NULL || given[0] == 0) {
        return output_refuse("a cluster needs a secret that all its machines know: --secret-file FILE or "
                             "RINGSPAN_SECRET; 'head -c 24 /dev/urandom | base64 > FILE' makes one");
    }
    *bytes = strlen(given);
    if (*bytes > SECRET_MAX) return output_refuse("RINGSPAN_SECRET is longer than %d bytes", SECRET_MAX);
    memcpy(secret, given, *bytes);
    return 0;
}

static bool go_on(void *user) {
    (void)user;
    return !interrupt_seen();
}

static void print_news(void *user, const char *line) {
    (void)user;
    fprintf(stderr, "ringspan: %s\n", line);
}

/* What the flags say of a cluster; `secret` [SECRET_MAX] and `here` are where it points to. */
static int read_options(const args *a, char *secret, profile *here, rs_cluster_options *out) {
    bool finds = a->hosts == 0 && a->discover; /* join, which gives the address or this */
    *out = (rs_cluster_options){.address = a->address != NULL || finds ? a->address : listen_default,
                                .secret = secret,
                                .machine = profile_load(here) && here->machine.threads > 0 ? &here->machine : NULL,
                                .hosts = a->hosts,
                                .wait_s = a->wait_s,
                                .discover = a->discover,
                                .go_on = go_on,
                                .news = a->quiet ? NULL : print_news};
    int code = find_secret(a, secret, &out->secret_bytes);
    if (code == 0) interrupt_watch();
    return code;
}

int hosts_open(const args *a, const rs_model *model, rs_cluster **out) {
    char secret[SECRET_MAX];
    profile here;
    rs_cluster_options o;
    int code = read_options(a, secret, &here, &o);
    return code == 0 ? output_status(rs_cluster_open(model, &o, out)) : code;
}

int hosts_measure(rs_cluster *cluster, rs_machines *out) {
    bool known;
    int code = output_status(rs_cluster_measure(cluster, out, &known));
    if (code == 0 && !known) {
        code = output_refuse("not every machine has been measured; run 'ringspan probe' on each, then join again");
    }
    return code;
}

/* Fills in what the planner finds fastest. */
static int search_plan(const args *a, const rs_model *model, forecast *f, rs_options *options) {
    rs_options wanted = *options;
    if (options->memory_limit > 0) f->cluster.machine[0].memory_bytes = options->memory_limit;
    wanted.memory_limit = 0; /* the others said theirs */
    int code = forecast_make(f, model, &wanted, &(number_list){1, {0}});
    if (code != 0) return code;
    const rs_options *best = &f->list[0].options;
    options->ranks = best->ranks;
    options->split = best->split;
    options->tpa = best->tpa;
    options->chunk = best->chunk;
    memcpy(options->shares, best->shares, sizeof options->shares);
    memcpy(options->weight_shares, best->weight_shares, sizeof options->weight_shares);
    if (!a->quiet) forecast_print_choice(f, stderr);
    return 0;
}

/* Decides what the flags leave open: as the planner says where it knows all machines, else alike for all. */
static int choose(const args *a, const rs_model *model, rs_cluster *cluster, rs_options *options) {
    bool known = false, decided = options->split != RS_SPLIT_AUTO && options->ranks > 0 && options->chunk > 0 &&
                                  (options->shares[0] > 0 || options->weight_shares[0] > 0);
    forecast *f = decided ? NULL : calloc(1, sizeof *f);
    if (decided) return 0;
    if (f == NULL) return output_refuse("no memory for a plan");
    int code = output_status(rs_cluster_measure(cluster, &f->cluster, &known));
    if (code == 0 && known) code = search_plan(a, model, f, options);
    if (code == 0 && !known) {
        if (options->ranks == 0) options->ranks = a->hosts;
        if (!a->quiet) {
            fputs("ringspan: note: not all machines have been measured ('ringspan probe'): all get the same\n", stderr);
        }
    }
    free(f);
    return code;
}

int hosts_lead(const args *a, const rs_model *model, rs_options *options, rs_cluster **out) {
    if (a->hosts == 0) return 0;
    int code = hosts_open(a, model, out);
    if (code == 0) code = choose(a, model, *out, options);
    if (code == 0) options->cluster = *out;
    return code;
}

int join_command(const args *a) {
    char secret[SECRET_MAX];
    profile here;
    rs_cluster_options o;
    rs_model *model = NULL;
    int code = read_options(a, secret, &here, &o);
    if (code != 0) return code;
    if (o.wait_s <= 0) o.wait_s = JOIN_WAIT_S;
    if (a->model != NULL) code = output_status(rs_model_open(a->model, &model));
    if (code == 0) code = output_status(rs_cluster_join(&o, &a->engine, model));
    rs_model_close(model);
    return code;
}
