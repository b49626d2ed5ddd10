/* hosts.c: finds the secret and leads or joins a cluster. */
#include "cli/hosts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/output.h"

static const char listen_default[] = "7777";
enum { JOIN_WAIT_S = 60 };

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

int cluster_options(const args *a, char *secret, rs_cluster_options *out) {
    *out = (rs_cluster_options){.address = a->address != NULL ? a->address : listen_default,
                                .secret = secret,
                                .hosts = a->hosts,
                                .wait_s = a->wait_s,
                                .go_on = go_on,
                                .news = a->quiet ? NULL : print_news};
    int code = find_secret(a, secret, &out->secret_bytes);
    if (code == 0) interrupt_watch();
    return code;
}

int cluster_open(const args *a, const rs_model *model, rs_options *options, rs_cluster **out) {
    char secret[SECRET_MAX];
    rs_cluster_options o;
    if (a->hosts == 0) return 0;
    int code = cluster_options(a, secret, &o);
    if (code == 0) code = output_status(rs_cluster_open(model, &o, out));
    if (code == 0) options->cluster = *out;
    return code;
}

int join_command(const args *a) {
    char secret[SECRET_MAX];
    rs_cluster_options o;
    rs_model *model = NULL;
    int code = cluster_options(a, secret, &o);
    if (code != 0) return code;
    if (o.wait_s <= 0) o.wait_s = JOIN_WAIT_S;
    if (a->model != NULL) code = output_status(rs_model_open(a->model, &model));
    if (code == 0) code = output_status(rs_cluster_join(&o, &a->engine, model));
    rs_model_close(model);
    return code;
}
