/* peer.c: the thread that watches one connection. */
#include "engine/peer.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

static const double BEAT_S = 0.2; /* between two signs of life */

enum { WAITING_MAX = 8 /* frames that nobody has asked for yet */ };

struct peer {
    channel *channel;
    peer_lost lost;
    void *user;
    pthread_t watch;
    bool watched; /* the thread was started; only the owner looks */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    channel_frame waiting[WAITING_MAX]; /* a ring */
    size_t first, n_waiting;
    bool closing, gone;
    char why[STATUS_TEXT_MAX]; /* gone */
};

/* The end of the connection, told once, and first to the owner: who then meets it in peer_expect can ask why. */
static void lose(peer *p, rs_status status, const char *why) {
    pthread_mutex_lock(&p->lock);
    bool tell = !p->gone && !p->closing;
    pthread_mutex_unlock(&p->lock);
    if (tell) p->lost(p->user, p, status, why);
    pthread_mutex_lock(&p->lock);
    if (!p->gone) snprintf(p->why, sizeof p->why, "%s", why);
    p->gone = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

/* Keeps a frame for peer_expect, once there is room: whoever is sent many takes them soon. False at the end of the
 * connection. */
static bool keep(peer *p, const channel_frame *f) {
    struct timespec until = clock_after(PEER_SILENCE_S);
    int late = 0;
    pthread_mutex_lock(&p->lock);
    while (p->n_waiting == WAITING_MAX && !p->closing && late == 0) {
        late = pthread_cond_timedwait(&p->changed, &p->lock, &until);
    }
    bool kept = p->n_waiting < WAITING_MAX;
    if (kept) p->waiting[(p->first + p->n_waiting++) % WAITING_MAX] = *f;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    if (!kept) {
        free(f->data);
        lose(p, RS_PEER_LOST, "it sends what nobody asked for");
    }
    return kept;
}

/* False at the end of the connection. */
static bool take_frame(peer *p, const channel_frame *f) {
    if (f->kind != PEER_BEAT && f->kind != PEER_FAILED && f->kind != PEER_BYE) return keep(p, f);
    if (f->kind == PEER_FAILED) {
        char *text;
        unsigned long status = strtoul((const char *)f->data, &text, 10);
        bool known = status > RS_OK && status <= RS_DEVICE && *text == ' ';
        lose(p, known ? (rs_status)status : RS_PEER_LOST, known ? text + 1 : "it failed");
    } else if (f->kind == PEER_BYE) {
        lose(p, RS_OK, "it left");
    }
    free(f->data);
    return f->kind == PEER_BEAT;
}

static void *watch_main(void *argument) {
    peer *p = argument;
    double heard_s = clock_s(), sent_s = 0;
    for (bool on = true; on;) {
        channel_frame f;
        rs_status status = channel_receive(p->channel, BEAT_S, &f);
        double now_s = clock_s();
        if (status == RS_OK) {
            heard_s = now_s;
            on = take_frame(p, &f);
        } else if (status != RS_PEER_LATE) {
            lose(p, RS_PEER_LOST, rs_last_error());
            on = false;
        } else if (now_s - heard_s > PEER_SILENCE_S) {
            char why[64];
            snprintf(why, sizeof why, "it has been silent for %.1f s", now_s - heard_s);
            lose(p, RS_PEER_LOST, why);
            on = false;
        }
        if (on && now_s - sent_s >= BEAT_S) {
            channel_send(p->channel, PEER_BEAT, NULL, 0); /* a failure shows when receiving */
            sent_s = now_s;
        }
    }
    return NULL;
}

rs_status peer_open(channel *c, peer_lost lost, void *user, peer **out) {
    peer *p = calloc(1, sizeof *p);
    if (p == NULL) {
        channel_close(c);
        return status_fail(RS_NO_MEMORY, "no memory for a peer");
    }
    *p = (peer){.channel = c, .lost = lost, .user = user};
    pthread_mutex_init(&p->lock, NULL);
    clock_condition_init(&p->changed);
    *out = p; /* before the thread may call `lost` */
    p->watched = pthread_create(&p->watch, NULL, watch_main, p) == 0;
    if (p->watched) return RS_OK;
    peer_close(p);
    *out = NULL;
    return status_fail(RS_NO_MEMORY, "cannot start a thread for a peer");
}

void peer_close(peer *p) {
    if (p == NULL) return;
    pthread_mutex_lock(&p->lock);
    p->closing = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    channel_shut(p->channel);
    if (p->watched) pthread_join(p->watch, NULL);
    for (size_t i = 0; i < p->n_waiting; i++) free(p->waiting[(p->first + i) % WAITING_MAX].data);
    channel_close(p->channel);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

rs_status peer_send(peer *p, peer_kind kind, const void *data, size_t bytes) {
    return channel_send(p->channel, (uint8_t)kind, data, bytes);
}

rs_status peer_send_text(peer *p, peer_kind kind, char *text) {
    rs_status status = peer_send(p, kind, text, strlen(text));
    free(text);
    return status;
}

rs_status peer_send_failure(peer *p, rs_status status, const char *why) {
    char text[STATUS_TEXT_MAX + 16];
    int n = snprintf(text, sizeof text, "%u %s", (unsigned)status, why);
    return peer_send(p, PEER_FAILED, text, (size_t)n);
}

rs_status peer_next(peer *p, double deadline_s, channel_frame *out) {
    struct timespec until = clock_after(deadline_s);
    char why[STATUS_TEXT_MAX];
    int late = 0;
    pthread_mutex_lock(&p->lock);
    while (p->n_waiting == 0 && !p->gone && late == 0) late = pthread_cond_timedwait(&p->changed, &p->lock, &until);
    bool got = p->n_waiting > 0, gone = p->gone;
    if (got) {
        *out = p->waiting[p->first];
        p->first = (p->first + 1) % WAITING_MAX;
        p->n_waiting--;
        pthread_cond_broadcast(&p->changed);
    }
    snprintf(why, sizeof why, "%s", p->why);
    pthread_mutex_unlock(&p->lock);
    if (got) return RS_OK;
    return gone ? status_fail(RS_PEER_LOST, "%s", why)
                : status_fail(RS_PEER_LATE, "no answer within %.0f s", deadline_s);
}

rs_status peer_expect(peer *p, peer_kind kind, double deadline_s, channel_frame *out) {
    RS_TRY(peer_next(p, deadline_s, out));
    if (out->kind == kind) return RS_OK;
    free(out->data);
    return status_fail(RS_BAD_FORMAT, "a frame of kind %u came instead of one of kind %d", out->kind, (int)kind);
}
