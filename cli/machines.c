/* machines.c: reads and writes machines and clusters as JSON. Whoever writes one by hand mistypes: an unknown key or a
 * value that cannot be meant is refused and named. */
#include "cli/machines.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "cli/args.h"

enum { WHERE_BYTES = 160, DEPTH_MAX = 8 };

/* Names of GGUF's weight formats by their numbers. */
static const char *const format_names[RS_WEIGHT_FORMATS] = {
    [0] = "F32",   [1] = "F16",   [2] = "Q4_0",    [3] = "Q4_1",  [6] = "Q5_0",
    [7] = "Q5_1",  [8] = "Q8_0",  [10] = "Q2_K",   [11] = "Q3_K", [12] = "Q4_K",
    [13] = "Q5_K", [14] = "Q6_K", [20] = "IQ4_NL", [30] = "BF16", [39] = "MXFP4",
};

/* Where in which file a value stands. */
typedef struct place {
    const char *file;
    char where[WHERE_BYTES];
} place;

static place inside(const place *p, const char *key) {
    place out = {.file = p->file};
    int n = snprintf(out.where, sizeof out.where, "%s%s%s", p->where, p->where[0] != 0 ? "." : "", key);
    if (n < 0 || (size_t)n >= sizeof out.where) snprintf(out.where, sizeof out.where, "...%.100s", key);
    return out;
}

static bool refuse(const place *p, const char *reason) {
    output_refuse("%s: %s%s%s", p->file, p->where, p->where[0] != 0 ? ": " : "", reason);
    return false;
}

/* ---- Values ---- */

static bool read_number(const json_t *value, const place *p, double least, double most, double *out) {
    char reason[96];
    double number = json_number_value(value);
    if (json_is_number(value) && number >= least && number <= most) {
        *out = number;
        return true;
    }
    snprintf(reason, sizeof reason, "must be a number from %g to %g", least, most);
    return refuse(p, reason);
}

static bool read_rate(const json_t *value, const place *p, double *out) {
    return read_number(value, p, 1, 1e18, out);
}

static bool read_seconds(const json_t *value, const place *p, double *out) {
    return read_number(value, p, 0, 10, out);
}

/* One rate for every format, or an object of them by name; "default" is for those that are not named. */
static bool read_rates_by_name(const json_t *value, const place *p, const char *const *names, int count, double *out) {
    const char *key;
    json_t *entry;
    double others = 0;
    if (!json_is_object(value)) {
        if (!read_rate(value, p, &others)) return false;
    } else {
        json_object_foreach((json_t *)value, key, entry) {
            place here = inside(p, key);
            int i = 0;
            while (i < count && (names[i] == NULL || strcmp(names[i], key) != 0)) i++;
            bool named = i < count;
            if (!named && strcmp(key, "default") != 0) return refuse(&here, "no format of this name is known");
            if (!read_rate(entry, &here, named ? &out[i] : &others)) return false;
        }
    }
    for (int i = 0; i < count; i++) {
        if (names[i] != NULL && out[i] == 0) out[i] = others;
    }
    return true;
}

/* A rate, or one for each number of queries. */
static bool read_attend_rate(const json_t *value, const place *p, double out[RS_QUERIES]) {
    for (size_t i = 0; i < RS_QUERIES; i++) {
        const json_t *one = json_is_array(value) ? json_array_get(value, i) : value;
        if (!read_rate(one, p, &out[i])) return false;
    }
    if (json_is_array(value) && json_array_size(value) != RS_QUERIES) return refuse(p, "must be three numbers");
    return true;
}

static bool read_attend_rates(const json_t *value, const place *p, double out[RS_KV_FORMATS][RS_QUERIES]) {
    for (int i = 0; i < RS_KV_FORMATS; i++) {
        place here = inside(p, args_kv_names[i]);
        const json_t *entry = json_is_object(value) ? json_object_get(value, args_kv_names[i]) : value;
        if (entry == NULL) return refuse(&here, "is missing");
        if (!read_attend_rate(entry, json_is_object(value) ? &here : p, out[i])) return false;
    }
    if (json_is_object(value) && json_object_size(value) != RS_KV_FORMATS) {
        return refuse(p, "knows the KV formats f16, q8_0 and q4_0 only");
    }
    return true;
}

static bool read_rates_entry(const char *key, const json_t *value, const place *p, rs_rates *out) {
    if (strcmp(key, "read_bytes_per_s") == 0) return read_rate(value, p, &out->read_bytes_per_s);
    if (strcmp(key, "small_s") == 0) return read_seconds(value, p, &out->small_s);
    if (strcmp(key, "launch_s") == 0) return read_seconds(value, p, &out->launch_s);
    if (strcmp(key, "vector_bytes_per_s") == 0) return read_rate(value, p, &out->vector_bytes_per_s);
    if (strcmp(key, "rows_per_s") == 0) return read_rate(value, p, &out->rows_per_s);
    if (strcmp(key, "outputs_per_s") == 0) return read_rate(value, p, &out->outputs_per_s);
    if (strcmp(key, "inputs_per_s") == 0) return read_rate(value, p, &out->inputs_per_s);
    if (strcmp(key, "attend_bytes_per_s") == 0) return read_attend_rates(value, p, out->attend_bytes_per_s);
    if (strcmp(key, "attend_many_flop_per_s") == 0) {
        return read_rates_by_name(value, p, args_kv_names, RS_KV_FORMATS, out->attend_many_flop_per_s);
    }
    double *formats = strcmp(key, "weights_bytes_per_s") == 0       ? out->weights_bytes_per_s
                      : strcmp(key, "weights_few_flop_per_s") == 0  ? out->weights_few_flop_per_s
                      : strcmp(key, "weights_many_flop_per_s") == 0 ? out->weights_many_flop_per_s
                                                                    : NULL;
    if (formats == NULL) return refuse(p, "no rate of this name is known");
    return read_rates_by_name(value, p, format_names, RS_WEIGHT_FORMATS, formats);
}

static bool any(const double *rates, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (rates[i] > 0) return true;
    }
    return false;
}

static bool read_rates(const json_t *object, const place *p, rs_rates *out) {
    const char *key;
    json_t *value;
    if (!json_is_object(object)) return refuse(p, "must be an object");
    json_object_foreach((json_t *)object, key, value) {
        place here = inside(p, key);
        if (!read_rates_entry(key, value, &here, out)) return false;
    }
    const struct {
        const char *key;
        bool given;
    } needed[] = {
        {"vector_bytes_per_s", out->vector_bytes_per_s > 0},
        {"weights_bytes_per_s", any(out->weights_bytes_per_s, RS_WEIGHT_FORMATS)},
        {"weights_few_flop_per_s", any(out->weights_few_flop_per_s, RS_WEIGHT_FORMATS)},
        {"weights_many_flop_per_s", any(out->weights_many_flop_per_s, RS_WEIGHT_FORMATS)},
        {"attend_bytes_per_s", out->attend_bytes_per_s[0][0] > 0},
        {"attend_many_flop_per_s", any(out->attend_many_flop_per_s, RS_KV_FORMATS)},
    };
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        place here = inside(p, needed[i].key);
        if (!needed[i].given) return refuse(&here, "is missing");
    }
    return true;
}

/* The two numbers of a link; other keys are the caller's to look at. */
static bool read_link(const json_t *object, const place *p, rs_link *out) {
    place latency = inside(p, "latency_s"), rate = inside(p, "bytes_per_s");
    if (!json_is_object(object)) return refuse(p, "must be an object with latency_s and bytes_per_s");
    return read_seconds(json_object_get(object, "latency_s"), &latency, &out->latency_s) &&
           read_rate(json_object_get(object, "bytes_per_s"), &rate, &out->bytes_per_s);
}

/* ---- Machines ---- */

static bool read_machine_entry(const char *key, const json_t *value, const place *p, rs_machine *out) {
    double number;
    if (strcmp(key, "comment") == 0) return json_is_string(value) || refuse(p, "must be a text");
    if (strcmp(key, "name") == 0) {
        const char *name = json_string_value(value);
        size_t bytes = name != NULL ? strlen(name) : 0;
        if (bytes == 0 || bytes >= sizeof out->name) return refuse(p, "must be a text of 1 to 47 bytes");
        memcpy(out->name, name, bytes + 1);
        return true;
    }
    if (strcmp(key, "memory_bytes") == 0) {
        if (!read_number(value, p, 1 << 20, 1e18, &number)) return false;
        out->memory_bytes = (uint64_t)number;
        return true;
    }
    if (strcmp(key, "threads") == 0) {
        if (!read_number(value, p, 1, 1024, &number)) return false;
        out->threads = (uint32_t)number;
        return true;
    }
    if (strcmp(key, "rates") == 0) return read_rates(value, p, &out->all);
    if (strcmp(key, "one_thread") == 0) return read_rates(value, p, &out->one);
    if (strcmp(key, "local") == 0) return read_link(value, p, &out->local);
    if (strcmp(key, "crowded") == 0) return read_link(value, p, &out->crowded);
    return refuse(p, "no property of a machine has this name");
}

static bool read_machine(const json_t *object, const place *p, rs_machine *out) {
    const char *key;
    json_t *value;
    rs_machine m = {.threads = 1};
    if (!json_is_object(object)) return refuse(p, "a machine must be an object");
    json_object_foreach((json_t *)object, key, value) {
        place here = inside(p, key);
        if (!read_machine_entry(key, value, &here, &m)) return false;
    }
    place name = inside(p, "name"), memory = inside(p, "memory_bytes"), rates = inside(p, "rates");
    if (m.name[0] == 0) return refuse(&name, "is missing");
    if (m.memory_bytes == 0) return refuse(&memory, "is missing");
    if (m.all.vector_bytes_per_s == 0) return refuse(&rates, "is missing");
    *out = m;
    return true;
}

bool machine_read(const json_t *object, const char *file, const char *where, rs_machine *out) {
    place p = {.file = file};
    snprintf(p.where, sizeof p.where, "%s", where);
    return read_machine(object, &p, out);
}

static json_t *rates_by_name_json(const char *const *names, size_t count, const double *rates) {
    json_t *out = json_object();
    for (size_t i = 0; i < count; i++) {
        if (names[i] != NULL && rates[i] > 0) json_object_set_new(out, names[i], json_real(rates[i]));
    }
    return out;
}

static json_t *rates_json(const rs_rates *r) {
    json_t *attend = json_object();
    for (int i = 0; i < RS_KV_FORMATS; i++) {
        json_t *list = json_array();
        for (int q = 0; q < RS_QUERIES; q++) json_array_append_new(list, json_real(r->attend_bytes_per_s[i][q]));
        json_object_set_new(attend, args_kv_names[i], list);
    }
    return json_pack(
        "{sf sf sf sf sf sf sf so so so so so}", "read_bytes_per_s", r->read_bytes_per_s, "small_s", r->small_s,
        "launch_s", r->launch_s, "vector_bytes_per_s", r->vector_bytes_per_s, "rows_per_s", r->rows_per_s,
        "outputs_per_s", r->outputs_per_s, "inputs_per_s", r->inputs_per_s, "weights_bytes_per_s",
        rates_by_name_json(format_names, RS_WEIGHT_FORMATS, r->weights_bytes_per_s), "weights_few_flop_per_s",
        rates_by_name_json(format_names, RS_WEIGHT_FORMATS, r->weights_few_flop_per_s), "weights_many_flop_per_s",
        rates_by_name_json(format_names, RS_WEIGHT_FORMATS, r->weights_many_flop_per_s), "attend_bytes_per_s", attend,
        "attend_many_flop_per_s", rates_by_name_json(args_kv_names, RS_KV_FORMATS, r->attend_many_flop_per_s));
}

static json_t *link_json(const rs_link *link) {
    return json_pack("{sf sf}", "latency_s", link->latency_s, "bytes_per_s", link->bytes_per_s);
}

json_t *machine_json(const rs_machine *m) {
    return json_pack("{so sI si so so so so}", "name", output_string(m->name, strlen(m->name)), "memory_bytes",
                     (json_int_t)m->memory_bytes, "threads", (int)m->threads, "rates", rates_json(&m->all),
                     "one_thread", rates_json(&m->one), "local", link_json(&m->local), "crowded",
                     link_json(&m->crowded));
}

/* ---- Files ---- */

/* False when it does not fit. */
static bool path_join(char path[PATH_MAX], const char *folder, int folder_bytes, const char *name, const char *ending) {
    int n = snprintf(path, PATH_MAX, "%.*s%s%s", folder_bytes, folder, name, ending);
    return n >= 0 && n < PATH_MAX;
}

static bool is_there(const char *path) {
    return access(path, R_OK) == 0;
}

/* The profiles that were installed with this program, wherever its tree was moved since. */
static bool shared_profile(char path[PATH_MAX], const char *name) {
    char self[PATH_MAX];
    ssize_t bytes = readlink("/proc/self/exe", self, sizeof self - 1);
    if (bytes <= 0) return false;
    self[bytes] = 0;
    char *slash = strrchr(self, '/');
    if (slash == NULL) return false;
    int n = snprintf(path, PATH_MAX, "%.*s/../share/ringspan/profiles/%s.json", (int)(slash - self), self, name);
    return n >= 0 && n < PATH_MAX && is_there(path);
}

/* Finds the file of a profile named in the file `from`: beside that, or among those installed. */
static bool find_profile(char path[PATH_MAX], const char *name, const char *from) {
    const char *slash = strrchr(from, '/');
    int folder_bytes = slash == NULL || name[0] == '/' ? 0 : (int)(slash - from) + 1;
    if (path_join(path, from, folder_bytes, name, "") && strchr(name, '.') != NULL && is_there(path)) return true;
    if (path_join(path, from, folder_bytes, name, ".json") && is_there(path)) return true;
    return strchr(name, '/') == NULL && shared_profile(path, name);
}

static json_t *load_json(const char *path) {
    json_error_t error;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL) output_refuse("%s: line %d: %s", path, error.line, error.text);
    return root;
}

/* The machine of a profile: the whole file, or the part of it that `ringspan probe` keeps for this. */
static json_t *load_profile(const char *path) {
    json_t *root = load_json(path), *part = json_object_get(root, "machine");
    if (part == NULL) return root;
    json_incref(part);
    json_decref(root);
    return part;
}

/* ---- Clusters ---- */

static bool add_machines(const json_t *entry, const place *p, rs_machines *out) {
    char path[PATH_MAX];
    double count = 1;
    place profile_place = inside(p, "profile"), count_place = inside(p, "count");
    if (!json_is_object(entry)) return refuse(p, "must be an object");
    const json_t *profile = json_object_get(entry, "profile"), *times = json_object_get(entry, "count");
    if (times != NULL && !read_number(times, &count_place, 1, RS_RANKS_MAX, &count)) return false;
    json_t *merged = json_object();
    if (profile != NULL) {
        const char *name = json_string_value(profile);
        json_decref(merged);
        if (name == NULL || !find_profile(path, name, p->file)) {
            return refuse(&profile_place, "no such profile, beside this file or among those installed");
        }
        merged = load_profile(path);
        if (merged == NULL) return false;
    }
    json_object_update_recursive(merged, (json_t *)entry);
    json_object_del(merged, "profile");
    json_object_del(merged, "count");
    rs_machine m;
    bool valid = read_machine(merged, p, &m);
    json_decref(merged);
    if (!valid) return false;
    if (out->count + (uint32_t)count > RS_RANKS_MAX) return refuse(p, "more than 64 machines");
    for (uint32_t i = 0; i < (uint32_t)count; i++) out->machine[out->count++] = m;
    return true;
}

static bool read_machines(const json_t *list, const place *p, rs_machines *out) {
    if (!json_is_array(list) || json_array_size(list) == 0) return refuse(p, "must be a list of machines");
    for (size_t i = 0; i < json_array_size(list); i++) {
        char key[32];
        snprintf(key, sizeof key, "machines[%zu]", i);
        place here = {.file = p->file};
        snprintf(here.where, sizeof here.where, "%s", key);
        if (!add_machines(json_array_get(list, i), &here, out)) return false;
    }
    return true;
}

/* "between": [a, b], with a link for both directions. */
static bool read_pair(const json_t *entry, const place *p, rs_machines *out) {
    int a, b;
    rs_link link;
    place between = inside(p, "between");
    if (!read_link(entry, p, &link)) return false;
    if (json_unpack((json_t *)entry, "{s[ii!]}", "between", &a, &b) != 0 || a < 0 || b < 0 || a == b ||
        (uint32_t)a >= out->count || (uint32_t)b >= out->count) {
        return refuse(&between, "must be the numbers of two machines");
    }
    out->link[a][b] = out->link[b][a] = link;
    return true;
}

static bool read_links(const json_t *root, const char *file, rs_machines *out) {
    place p = {.file = file, .where = "link"};
    rs_link link = {0};
    const json_t *all = json_object_get(root, "link"), *pairs = json_object_get(root, "links");
    if (all != NULL || (out->count > 1 && pairs == NULL)) {
        if (!read_link(all, &p, &link)) return false;
        for (uint32_t a = 0; a < out->count; a++) {
            for (uint32_t b = 0; b < out->count; b++) out->link[a][b] = link;
        }
    }
    for (size_t i = 0; i < json_array_size(pairs); i++) {
        snprintf(p.where, sizeof p.where, "links[%zu]", i);
        if (!read_pair(json_array_get(pairs, i), &p, out)) return false;
    }
    for (uint32_t a = 0; a < out->count; a++) {
        for (uint32_t b = 0; b < out->count; b++) {
            if (a == b || out->link[a][b].bytes_per_s > 0) continue;
            snprintf(p.where, sizeof p.where, "links: machines %u and %u", a, b);
            return refuse(&p, "no link is given");
        }
    }
    return true;
}

static bool read_cluster(const json_t *root, const char *file, rs_machines *out) {
    static const char *const known[] = {"name", "comment", "machines", "link", "links"};
    const char *key;
    json_t *value;
    place p = {.file = file};
    if (!json_is_object(root)) return refuse(&p, "must be an object");
    if (json_object_get(root, "machines") == NULL) {
        const json_t *part = json_object_get(root, "machine");
        out->count = 1;
        return read_machine(part != NULL ? part : root, &p, &out->machine[0]);
    }
    json_object_foreach((json_t *)root, key, value) {
        size_t i = 0;
        while (i < sizeof known / sizeof *known && strcmp(known[i], key) != 0) i++;
        place here = inside(&p, key);
        if (i == sizeof known / sizeof *known) return refuse(&here, "no property of a cluster has this name");
    }
    place machines = inside(&p, "machines");
    return read_machines(json_object_get(root, "machines"), &machines, out) && read_links(root, file, out);
}

json_t *machines_json(const rs_machines *m) {
    json_t *machines = json_array(), *links = json_array();
    for (uint32_t i = 0; i < m->count; i++) {
        json_array_append_new(machines, machine_json(&m->machine[i]));
        for (uint32_t k = 0; k < i; k++) {
            const rs_link *there = &m->link[i][k], *back = &m->link[k][i];
            json_t *link = json_pack("{s[ii] sf sf}", "between", (int)k, (int)i, "latency_s", there->latency_s,
                                     "bytes_per_s", fmin(there->bytes_per_s, back->bytes_per_s));
            json_array_append_new(links, link);
        }
    }
    return json_pack("{so so}", "machines", machines, "links", links);
}

int machines_load(const char *name, rs_machines *out) {
    char path[PATH_MAX];
    memset(out, 0, sizeof *out);
    if (!is_there(name) && (strchr(name, '/') != NULL || !shared_profile(path, name))) {
        return output_refuse("cannot read the cluster %s: %s", name, strerror(errno));
    }
    if (is_there(name) && !path_join(path, name, (int)strlen(name), "", "")) {
        return output_refuse("the name of the cluster is too long");
    }
    json_t *root = load_json(path);
    if (root == NULL) return EXIT_REFUSED;
    bool valid = read_cluster(root, path, out);
    json_decref(root);
    return valid ? 0 : EXIT_REFUSED;
}
