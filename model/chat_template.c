/* chat_template.c: starts, asks and ends the helper process that renders chat templates (chat_template.py). */
#include "model/chat_template.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/status.h"

#ifndef RS_PYTHON
#define RS_PYTHON "/usr/bin/python3"
#endif

extern const char chat_template_source[]; /* the text of chat_template.py, made by the build */

/* Python and Jinja2 start in 0.1 s; a cold cache on a network disk under load has taken many times that. A prompt of
 * two million tokens renders in 2 s. A killed process is gone in milliseconds. */
static const double START_S = 20, RENDER_S = 5, REAP_S = 2;

struct chat_template {
    json_t *source, *bos, *eos;
    pthread_mutex_t lock; /* over everything below */
    pid_t helper;         /* 0: none runs */
    int fd;               /* our end of its socket, when one runs */
};

/* How an exchange of lines with the helper went. */
typedef enum outcome { ANSWERED, DIED, LATE, TOO_LONG, NO_MEMORY } outcome;

typedef struct line {
    char *data;
    size_t bytes, capacity;
} line;

/* ---- Replies ---- */

/* Copies a message from the helper for people to read: one line, no control characters (a terminal would obey them),
 * cut between characters. */
static void tidy_message(const char *message, char *out, size_t capacity) {
    size_t bytes = strlen(message), written = 0;
    for (size_t i = 0, n; i < bytes; i += n) {
        int32_t c;
        n = utf8_decode(message + i, bytes - i, &c);
        bool control = c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x2028 || c == 0x2029;
        if (control && written > 0 && out[written - 1] == ' ') continue;
        if (written + n >= capacity) break;
        memcpy(out + written, control ? " " : message + i, control ? 1 : n);
        written += control ? 1 : n;
    }
    while (written > 0 && (out[written - 1] == ' ' || out[written - 1] == '.')) written--; /* More may follow. */
    out[written] = '\0';
}

static rs_status reported(const char *kind, const char *message) {
    char text[400];
    tidy_message(message, text, sizeof text);
    if (strcmp(kind, "format") == 0) return status_fail(RS_BAD_FORMAT, "the chat template failed: %s", text);
    if (strcmp(kind, "limit") == 0) return status_fail(RS_LIMIT, "the chat template was ended: %s", text);
    if (strcmp(kind, "unsupported") == 0)
        return status_fail(RS_UNSUPPORTED,
                           "chat templates need Python 3 with Jinja2 3.1, but %s; install python3-jinja2", text);
    return status_fail(RS_IO, "the chat template's helper reported a failure of unknown kind");
}

rs_status chat_template_reply(const char *data, size_t bytes, char **text) {
    const char *got = NULL, *kind = NULL, *message = NULL;
    rs_status status = RS_OK;
    json_t *reply = json_loadb(data, bytes, JSON_REJECT_DUPLICATES, NULL);
    if (json_unpack(reply, "{s:s!}", "text", &got) == 0) {
        *text = strdup(got);
        if (*text == NULL) status = status_fail(RS_NO_MEMORY, "no memory for %zu bytes of prompt", strlen(got));
    } else if (json_unpack(reply, "{s:s, s:s!}", "error", &kind, "message", &message) == 0) {
        status = reported(kind, message);
    } else {
        status = status_fail(RS_IO, "the chat template's helper sent %zu bytes that are no reply", bytes);
    }
    json_decref(reply);
    return status;
}

/* ---- Lines, with deadlines (instants of clock_s) ---- */

/* True when fd can be read or written, or has an error that reading or writing will tell. */
static bool wait_for(int fd, short events, double deadline) {
    for (;;) {
        double left = deadline - clock_s();
        if (left <= 0) return false;
        struct pollfd p = {.fd = fd, .events = events};
        int ready = poll(&p, 1, (int)(left * 1000) + 1);
        if (ready > 0) return true;
        if (ready < 0 && errno != EINTR) return false;
    }
}

static outcome send_line(int fd, const char *data, size_t bytes, double deadline) {
    for (size_t sent = 0; sent < bytes;) {
        if (!wait_for(fd, POLLOUT, deadline)) return LATE;
        ssize_t n = send(fd, data + sent, bytes - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0)
            sent += (size_t)n;
        else if (errno != EAGAIN && errno != EINTR)
            return DIED;
    }
    return ANSWERED;
}

/* Reads until the last byte is a newline: two lines at once are one reply, and a malformed one. */
static outcome receive_line(int fd, double deadline, line *l) {
    while (l->bytes == 0 || l->data[l->bytes - 1] != '\n') {
        if (l->bytes == l->capacity) {
            if (l->capacity >= CHAT_REPLY_BYTES_MAX) return TOO_LONG;
            size_t capacity = l->capacity ? 2 * l->capacity : 1 << 16;
            char *data = realloc(l->data, capacity);
            if (data == NULL) return NO_MEMORY;
            l->data = data;
            l->capacity = capacity;
        }
        if (!wait_for(fd, POLLIN, deadline)) return LATE;
        ssize_t n = recv(fd, l->data + l->bytes, l->capacity - l->bytes, MSG_DONTWAIT);
        if (n > 0)
            l->bytes += (size_t)n;
        else if (n == 0 || (errno != EAGAIN && errno != EINTR))
            return DIED;
    }
    return ANSWERED;
}

/* ---- The helper's life ---- */

/* Ends the helper and returns its wait status, -1 when someone else in this process has collected it. */
static int stop(chat_template *t) {
    int how = -1;
    if (t->helper == 0) return how;
    close(t->fd);
    kill(-t->helper, SIGKILL); /* Its group: `python3` may be a script that started the interpreter. */
    double deadline = clock_s() + REAP_S;
    pid_t gone;
    while ((gone = waitpid(t->helper, &how, WNOHANG)) == 0 || (gone < 0 && errno == EINTR)) {
        if (clock_s() > deadline) break;
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
    }
    t->helper = 0;
    return gone > 0 ? how : -1;
}

/* Ends the helper and says why the exchange failed; `doing` is what it was asked to do. */
static rs_status failed(chat_template *t, outcome o, const char *doing, double seconds) {
    int how = stop(t);
    switch (o) {
    case LATE:
        return status_fail(RS_LIMIT, "%s took longer than %g s, and was ended", doing, seconds);
    case TOO_LONG:
        return status_fail(RS_LIMIT, "%s gave more than the %d bytes allowed, and was ended", doing,
                           CHAT_REPLY_BYTES_MAX);
    case NO_MEMORY:
        return status_fail(RS_NO_MEMORY, "%s: no memory for the reply", doing);
    default:
        break;
    }
    if (how != -1 && WIFSIGNALED(how))
        return status_fail(RS_IO, "%s: the helper process was ended by signal %d", doing, WTERMSIG(how));
    return status_fail(RS_IO, "%s: the helper process ended (status %d)", doing, how == -1 ? -1 : WEXITSTATUS(how));
}

/* The few variables that finding and starting an interpreter may need, and the time zone; none of the others, which
 * may hold secrets, reach the helper. */
static void choose_environment(char *chosen[8]) {
    static const char *const names[] = {"PATH=", "HOME=", "LD_LIBRARY_PATH=", "TZ="};
    size_t n = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        for (char **e = environ; e && *e; e++) {
            if (strncmp(*e, names[i], strlen(names[i])) != 0) continue;
            chosen[n++] = *e;
            break;
        }
    }
    chosen[n] = NULL;
}

/* Runs the interpreter with the child's end of a socket as descriptor 0 and nothing else of ours: no other descriptor,
 * default signals, own process group (the terminal's Ctrl-C is for us to handle). Returns an errno value. */
static int spawn(const char *interpreter, int socket_end, pid_t *helper) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t all, none;
    char seconds[16], memory[16], reply[16], *variables[8];
    snprintf(seconds, sizeof seconds, "%d", (int)RENDER_S + 1);
    snprintf(memory, sizeof memory, "%d", CHAT_MEMORY_BYTES);
    snprintf(reply, sizeof reply, "%d", CHAT_REPLY_BYTES_MAX);
    const char *const arguments[] = {interpreter, "-I", "-B", "-c", chat_template_source, seconds, memory, reply, NULL};
    choose_environment(variables);
    sigfillset(&all);
    sigemptyset(&none);

    int error = posix_spawn_file_actions_init(&actions);
    if (error) return error;
    error = posix_spawnattr_init(&attributes);
    if (error) goto no_attributes;
    if ((error = posix_spawn_file_actions_adddup2(&actions, socket_end, 0)) ||
        (error = posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0)) ||
        (error = posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0)) ||
        (error = posix_spawn_file_actions_addclosefrom_np(&actions, 3)) ||
        (error = posix_spawnattr_setsigdefault(&attributes, &all)) ||
        (error = posix_spawnattr_setsigmask(&attributes, &none)) ||
        (error = posix_spawnattr_setflags(&attributes,
                                          POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK)))
        goto out;
    error = posix_spawnp(helper, interpreter, &actions, &attributes, (char *const *)arguments, variables);
out:
    posix_spawnattr_destroy(&attributes);
no_attributes:
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

/* Starts `interpreter` and reads the line by which the helper says that it is ready. RS_UNSUPPORTED when this one
 * cannot serve but another might. */
static rs_status start(chat_template *t, const char *interpreter) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return status_fail(RS_IO, "no socket for the chat template's helper: %s", strerror(errno));
    pid_t helper;
    int error = spawn(interpreter, ends[1], &helper);
    close(ends[1]);
    if (error) {
        char message[200];
        close(ends[0]);
        snprintf(message, sizeof message, "%s cannot be started: %s", interpreter, strerror(error));
        return reported("unsupported", message);
    }
    t->helper = helper;
    t->fd = ends[0];

    line l = {0};
    rs_status status;
    outcome o = receive_line(t->fd, clock_s() + START_S, &l);
    if (o == DIED) {
        char message[200];
        stop(t);
        snprintf(message, sizeof message, "%s ended before it was ready", interpreter);
        status = reported("unsupported", message);
    } else if (o != ANSWERED) {
        status = failed(t, o, "starting the chat template's helper", START_S);
    } else {
        char *ready = NULL;
        status = chat_template_reply(l.data, l.bytes, &ready);
        free(ready);
        if (status != RS_OK) stop(t);
    }
    free(l.data);
    return status;
}

static rs_status start_any(chat_template *t) {
    rs_status status = start(t, RS_PYTHON);
    return status == RS_UNSUPPORTED ? start(t, "python3") : status;
}

/* ---- Rendering ---- */

/* The number of leading bytes that are valid UTF-8. */
static size_t valid_bytes(str text) {
    size_t i = 0;
    while (i < text.bytes) {
        int32_t c;
        size_t n = utf8_decode(text.data + i, text.bytes - i, &c);
        if (c < 0) break;
        i += n;
    }
    return i;
}

rs_status chat_template_open(str source, str bos, str eos, chat_template **out) {
    const str texts[] = {source, bos, eos};
    static const char *const names[] = {"source", "BOS token", "EOS token"};
    if (source.bytes > CHAT_SOURCE_BYTES_MAX)
        return status_fail(RS_LIMIT, "the chat template has %zu bytes, and at most %d are read", source.bytes,
                           CHAT_SOURCE_BYTES_MAX);
    for (size_t i = 0; i < 3; i++) {
        size_t valid = valid_bytes(texts[i]);
        if (valid < texts[i].bytes)
            return status_fail(RS_BAD_FORMAT, "the chat template's %s is not UTF-8 at byte %zu", names[i], valid);
    }
    chat_template *t = calloc(1, sizeof *t);
    if (t == NULL) return status_fail(RS_NO_MEMORY, "no memory for a chat template");
    pthread_mutex_init(&t->lock, NULL);
    t->source = json_stringn(source.data ? source.data : "", source.bytes);
    t->bos = json_stringn(bos.data ? bos.data : "", bos.bytes);
    t->eos = json_stringn(eos.data ? eos.data : "", eos.bytes);
    if (!t->source || !t->bos || !t->eos) {
        chat_template_close(t);
        return status_fail(RS_NO_MEMORY, "no memory for a chat template of %zu bytes", source.bytes);
    }
    *out = t;
    return RS_OK;
}

void chat_template_close(chat_template *t) {
    if (t == NULL) return;
    stop(t);
    json_decref(t->source);
    json_decref(t->bos);
    json_decref(t->eos);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

static rs_status check_messages(const rs_message *messages, size_t count) {
    if (messages == NULL && count > 0) return status_fail(RS_BAD_ARGUMENT, "the messages are NULL");
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        const char *const fields[] = {messages[i].role, messages[i].content};
        static const char *const names[] = {"role", "content"};
        for (size_t k = 0; k < 2; k++) {
            if (fields[k] == NULL)
                return status_fail(RS_BAD_ARGUMENT, "the %s of message %zu is NULL", names[k], i + 1);
            str text = str_of(fields[k]);
            size_t valid = valid_bytes(text);
            if (valid < text.bytes)
                return status_fail(RS_BAD_ARGUMENT, "the %s of message %zu is not UTF-8 at byte %zu", names[k], i + 1,
                                   valid);
            total += text.bytes;
        }
    }
    if (total > CHAT_TEXT_BYTES_MAX)
        return status_fail(RS_LIMIT, "the messages have %zu bytes, and at most %d are rendered", total,
                           CHAT_TEXT_BYTES_MAX);
    return RS_OK;
}

/* The request as a NUL-terminated line of JSON without its newline; NULL without memory. */
static char *request_new(const chat_template *t, const rs_message *messages, size_t count, bool add_generation_prompt) {
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++) {
        json_t *m = json_pack("{s:s, s:s}", "role", messages[i].role, "content", messages[i].content);
        if (json_array_append_new(list, m) != 0) goto no_memory;
    }
    json_t *request = json_pack("{s:O, s:O, s:O, s:O, s:b}", "template", t->source, "bos_token", t->bos, "eos_token",
                                t->eos, "messages", list, "add_generation_prompt", add_generation_prompt);
    json_decref(list);
    char *text = request ? json_dumps(request, JSON_COMPACT) : NULL;
    json_decref(request);
    return text;
no_memory:
    json_decref(list);
    return NULL;
}

static outcome ask(chat_template *t, const char *request, size_t bytes, line *reply) {
    double deadline = clock_s() + RENDER_S;
    reply->bytes = 0;
    outcome o = send_line(t->fd, request, bytes, deadline);
    return o == ANSWERED ? receive_line(t->fd, deadline, reply) : o;
}

static rs_status converse(chat_template *t, const char *request, size_t bytes, char **text) {
    bool ran = t->helper != 0;
    if (!ran) RS_TRY(start_any(t));
    line reply = {0};
    outcome o = ask(t, request, bytes, &reply);
    rs_status status = RS_OK;
    if (o == DIED && ran) {
        /* It may have died since the last call, of something unrelated to this one. */
        stop(t);
        status = start_any(t);
        if (status != RS_OK) goto out;
        o = ask(t, request, bytes, &reply);
    }
    if (o != ANSWERED) {
        status = failed(t, o, "rendering the chat template", RENDER_S);
        goto out;
    }
    status = chat_template_reply(reply.data, reply.bytes, text);
    /* After a malformed reply, or after an allocation failed anywhere in the interpreter, a new one is safer. */
    if (status == RS_IO || status == RS_LIMIT) stop(t);
out:
    free(reply.data);
    return status;
}

rs_status chat_template_render(chat_template *t, const rs_message *messages, size_t count, bool add_generation_prompt,
                               char **text) {
    RS_TRY(check_messages(messages, count));
    char *request = request_new(t, messages, count, add_generation_prompt);
    if (request == NULL) return status_fail(RS_NO_MEMORY, "no memory for a chat of %zu messages", count);
    size_t bytes = strlen(request);
    request[bytes] = '\n';
    pthread_mutex_lock(&t->lock);
    rs_status status = converse(t, request, bytes + 1, text);
    pthread_mutex_unlock(&t->lock);
    free(request);
    return status;
}
