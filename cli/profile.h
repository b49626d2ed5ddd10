/* profile.h: the file in which `ringspan probe` leaves what it measured, for `ringspan plan`. */
#ifndef RS_CLI_PROFILE_H
#define RS_CLI_PROFILE_H

#include <limits.h>

#include "cli/output.h"

/* A measured machine as JSON, with what was measured where and when; NULL without memory. */
json_t *profile_of(const rs_probe *probe);

/* A profile on its way to its place: nobody ever sees half of it. */
typedef struct profile_file {
    char path[PATH_MAX], temporary[PATH_MAX];
    FILE *file;
} profile_file;

/* Makes sure that a profile can be stored at `path`; NULL: where profile_load looks, and missing folders are made. Its
 * return value and that of profile_commit are exit codes; unless it is 0, the reason was printed. */
int profile_begin(const char *path, profile_file *out);

/* Writes the profile (NULL: no memory) and puts it in its place. */
int profile_commit(profile_file *f, const json_t *json);
void profile_abandon(profile_file *f);

#define PROFILE_BUSY 0.9 /* with a lower cpu_share the figures say more of other programs than of the machine */

/* What a plan needs of the stored profile. */
typedef struct profile {
    double read_bytes_per_s; /* of all threads */
    unsigned threads;
    bool busy;          /* other programs took part of the machine, which can do more than this */
    char date[11];      /* "2026-11-25" */
    rs_machine machine; /* threads 0 where an older program has measured none */
} profile;

/* False when there is no valid profile of this host. */
bool profile_load(profile *out);

#endif
