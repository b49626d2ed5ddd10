/* profile.c: stores the profile of this machine in the user's cache folder, and finds it there. */
#include "cli/profile.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cli/machines.h"

enum { HOST_BYTES = 256 };

static void name_host(char host[HOST_BYTES]) {
    if (gethostname(host, HOST_BYTES) != 0) host[0] = 0;
    host[HOST_BYTES - 1] = 0;
}

static json_t *rate_json(const rs_rate *rate) {
    return json_pack("{sf sf sf}", "median", rate->median, "least", rate->least, "most", rate->most);
}

static json_t *ceilings_json(uint32_t threads, const rs_ceilings *c) {
    return json_pack("{si so so so so}", "threads", (int)threads, "read_bytes_per_s", rate_json(&c->read_bytes_per_s),
                     "copy_bytes_per_s", rate_json(&c->copy_bytes_per_s), "fp32_flop_per_s",
                     rate_json(&c->fp32_flop_per_s), "int8_op_per_s", rate_json(&c->int8_op_per_s));
}

json_t *profile_of(const rs_probe *p) {
    char host[HOST_BYTES], when[32];
    time_t now = time(NULL);
    struct tm utc;
    name_host(host);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    return json_pack("{ss ss so so ss ss si si si si sI sI sI sI sf sf so so so}", "ringspan_version", RS_VERSION,
                     "measured_at", when, "host", output_string(host, strlen(host)), "cpu",
                     output_string(p->cpu, strlen(p->cpu)), "kernels", p->kernels, "int8_by", p->int8_by, "cpus",
                     (int)p->cpus, "cores", (int)p->cores, "numa_nodes", (int)p->numa_nodes, "repetitions",
                     (int)p->repetitions, "memory_bytes", (json_int_t)p->memory_bytes, "allowed_bytes",
                     (json_int_t)p->allowed_bytes, "cache_bytes", (json_int_t)p->cache_bytes, "buffer_bytes",
                     (json_int_t)p->buffer_bytes, "duration_s", p->duration_s, "cpu_share", p->cpu_share, "all_threads",
                     ceilings_json(p->threads, &p->all), "one_thread", ceilings_json(1, &p->one), "machine",
                     machine_json(&p->machine));
}

/* ---- Where it lies ---- */

/* Prints like snprintf; false when it does not fit. */
static bool join(char *out, size_t bytes, const char *first, const char *second) {
    int n = snprintf(out, bytes, "%s%s", first, second);
    return n >= 0 && (size_t)n < bytes;
}

/* $XDG_CACHE_HOME/ringspan/machine.json, with ~/.cache for a cache folder that is not set (or relative, which does not
 * count: XDG Base Directory Specification). */
static bool default_path(char path[PATH_MAX]) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache != NULL && cache[0] == '/') return join(path, PATH_MAX, cache, "/ringspan/machine.json");
    return home != NULL && home[0] == '/' && join(path, PATH_MAX, home, "/.cache/ringspan/machine.json");
}

/* Makes the folders of `path` that are missing; where that fails, opening the file will tell. */
static void make_folders(char *path) {
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0777);
        *slash = '/';
    }
}

/* ---- Storing ---- */

static int refuse_file(const profile_file *f, int error) {
    return output_refuse("cannot store the profile in %s: %s", f->path, strerror(error));
}

int profile_begin(const char *path, profile_file *f) {
    struct stat there;
    *f = (profile_file){0};
    if (path == NULL && !default_path(f->path)) {
        return output_refuse("no place for the profile: neither XDG_CACHE_HOME nor HOME names a folder; give -o FILE");
    }
    if (path != NULL && !join(f->path, sizeof f->path, path, "")) {
        return output_refuse("the name of the profile has more than %d bytes", PATH_MAX - 1);
    }
    if (path == NULL) make_folders(f->path);
    if (stat(f->path, &there) == 0 && !S_ISREG(there.st_mode)) {
        return output_refuse("cannot store the profile in %s: it is no file", f->path);
    }
    char ending[32];
    snprintf(ending, sizeof ending, ".%ld.tmp", (long)getpid());
    if (!join(f->temporary, sizeof f->temporary, f->path, ending)) return refuse_file(f, ENAMETOOLONG);
    f->file = fopen(f->temporary, "wxe");
    return f->file != NULL ? 0 : refuse_file(f, errno);
}

int profile_commit(profile_file *f, const json_t *json) {
    if (json == NULL) {
        profile_abandon(f);
        return output_refuse("no memory for the profile");
    }
    errno = EIO; /* for a library that does not tell */
    bool written = json_dumpf(json, f->file, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) == 0 &&
                   fputc('\n', f->file) != EOF && fflush(f->file) == 0 && fsync(fileno(f->file)) == 0 &&
                   rename(f->temporary, f->path) == 0;
    int error = errno;
    if (!written) {
        profile_abandon(f);
        return refuse_file(f, error);
    }
    fclose(f->file);
    return 0;
}

void profile_abandon(profile_file *f) {
    fclose(f->file);
    unlink(f->temporary);
}

/* ---- Loading ---- */

bool profile_load(profile *out) {
    char path[PATH_MAX], host[HOST_BYTES];
    const char *of_host, *when;
    int threads;
    double read, share;
    if (!default_path(path)) return false;
    json_t *root = json_load_file(path, 0, NULL);
    if (root == NULL) return false;
    name_host(host);
    bool valid = json_unpack(root, "{ss ss sF s{si s{sF}}}", "host", &of_host, "measured_at", &when, "cpu_share",
                             &share, "all_threads", "threads", &threads, "read_bytes_per_s", "median", &read) == 0 &&
                 strcmp(of_host, host) == 0 && threads > 0 && read > 0 && isfinite(read);
    if (valid) {
        *out = (profile){.read_bytes_per_s = read, .threads = (unsigned)threads, .busy = share < PROFILE_BUSY};
        snprintf(out->date, sizeof out->date, "%.10s", when);
        const json_t *machine = json_object_get(root, "machine");
        if (machine != NULL && !machine_read(machine, path, "machine", &out->machine)) out->machine.threads = 0;
    }
    json_decref(root);
    return valid;
}
