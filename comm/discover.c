/* discover.c: Avahi's events as one call that announces and one that finds. */
#include "comm/discover.h"

#include <avahi-common/alternative.h>
#include <avahi-common/domain.h>
#include <avahi-common/error.h>
#include <avahi-common/malloc.h>
#include <avahi-common/simple-watch.h>
#include <avahi-common/thread-watch.h>
#include <avahi-core/core.h>
#include <avahi-core/log.h>
#include <avahi-core/lookup.h>
#include <avahi-core/publish.h>
#include <ifaddrs.h>
#include <inttypes.h>
#include <math.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"

enum { SIGHTINGS_MAX = 32 /* whoever floods the network with announcements does not fill our memory */ };
static const char service_type[] = "_ringspan._tcp";
static const double ANNOUNCE_S = 5; /* for what takes one: three questions whether somebody else has the name */
static const double SETTLE_S = 1;   /* from the first answer on; mDNS asks all to answer within half a second */
static const double STEP_S = 0.2;   /* between two looks at go_on */

/* Avahi logs to standard error, strangers' words among it; what matters here comes back as an error. */
static void drop_log(AvahiLogLevel level, const char *text) {
    (void)level;
    (void)text;
}

static void silence(void) {
    avahi_set_log_function(drop_log);
}

static rs_status status_of(int error) {
    if (error == AVAHI_ERR_NO_MEMORY) return RS_NO_MEMORY;
    return error == AVAHI_ERR_INVALID_SERVICE_NAME ? RS_BAD_ARGUMENT : RS_IO;
}

static const char *reason_of(int error) {
    if (error == AVAHI_ERR_NOT_FOUND) return "no network that carries multicast is up where it listens";
    if (error == AVAHI_ERR_NO_NETWORK) return "UDP port 5353 cannot be had: another program may keep it to itself";
    return avahi_strerror(error);
}

/* A responder or, without a host name, a mere browser. NULL: *error is Avahi's. */
static AvahiServer *open_server(const AvahiPoll *poll, const char *host, AvahiServerCallback changed, void *user,
                                int *error) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    AvahiServerConfig config;
    pthread_once(&once, silence);
    avahi_server_config_init(&config);
    config.host_name = host != NULL ? avahi_strdup(host) : NULL;
    config.disable_publishing = host == NULL;
    config.publish_hinfo = config.publish_addresses = config.publish_workstation = config.publish_domain = 0;
    config.enable_wide_area = 0;
    AvahiServer *server = avahi_server_new(poll, &config, changed, user, error);
    avahi_server_config_free(&config);
    return server;
}

/* ---- Announcing ---- */

struct announcement {
    AvahiThreadedPoll *poll; /* its thread owns what follows up to the lock, once it runs */
    AvahiServer *server;
    AvahiSEntryGroup *group;
    char name[DISCOVER_NAME_MAX];
    struct sockaddr_storage listens;
    bool everywhere; /* at all addresses of its family */
    uint16_t port;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    bool settled; /* announced, or failed: */
    int error;    /* Avahi's, or 0 */
};

static void group_changed(AvahiServer *s, AvahiSEntryGroup *g, AvahiEntryGroupState state, void *user);

static void settle(announcement *a, int error) {
    pthread_mutex_lock(&a->lock);
    a->settled = true;
    a->error = error;
    pthread_cond_broadcast(&a->changed);
    pthread_mutex_unlock(&a->lock);
}

static const void *address_bytes(const struct sockaddr *a) {
    return a->sa_family == AF_INET6 ? (const void *)&((const struct sockaddr_in6 *)a)->sin6_addr
                                    : &((const struct sockaddr_in *)a)->sin_addr;
}

static void read_socket(announcement *a, int listener) {
    static const struct in6_addr none; /* zeros: any, of either family */
    socklen_t bytes = sizeof a->listens;
    getsockname(listener, (struct sockaddr *)&a->listens, &bytes);
    bool is_6 = a->listens.ss_family == AF_INET6;
    a->everywhere = memcmp(address_bytes((struct sockaddr *)&a->listens), &none, is_6 ? 16 : 4) == 0;
    a->port =
        ntohs(is_6 ? ((struct sockaddr_in6 *)&a->listens)->sin6_port : ((struct sockaddr_in *)&a->listens)->sin_port);
}

/* Whether the head is reached at an interface's address, which is then *out. */
static bool is_reached(const announcement *a, const struct ifaddrs *i, AvahiAddress *out) {
    if (i->ifa_addr == NULL || i->ifa_addr->sa_family != a->listens.ss_family) return false;
    if ((i->ifa_flags & IFF_UP) == 0 || (i->ifa_flags & (IFF_MULTICAST | IFF_LOOPBACK)) == 0) return false;
    bool is_6 = a->listens.ss_family == AF_INET6;
    const void *own = address_bytes((const struct sockaddr *)&a->listens), *here = address_bytes(i->ifa_addr);
    size_t bytes = is_6 ? sizeof out->data.ipv6 : sizeof out->data.ipv4;
    out->proto = is_6 ? AVAHI_PROTO_INET6 : AVAHI_PROTO_INET;
    memcpy(out->data.data, here, bytes);
    return a->everywhere ? (i->ifa_flags & IFF_LOOPBACK) == 0 : memcmp(own, here, bytes) == 0;
}

/* Begins to announce under a->name. Returns an error of Avahi's, or 0. */
static int publish(announcement *a, AvahiServer *s) {
    struct ifaddrs *interfaces;
    AvahiAddress address;
    int error = 0, index = AVAHI_IF_UNSPEC;
    bool any = false;
    if (a->group == NULL) a->group = avahi_s_entry_group_new(s, group_changed, a);
    if (a->group == NULL) return avahi_server_errno(s);
    avahi_s_entry_group_reset(a->group);
    if (getifaddrs(&interfaces) != 0) return AVAHI_ERR_OS;
    for (struct ifaddrs *i = interfaces; i != NULL && error == 0; i = i->ifa_next) {
        if (!is_reached(a, i, &address)) continue;
        any = true;
        index = (int)if_nametoindex(i->ifa_name);
        error = avahi_server_add_address(s, a->group, index, address.proto, AVAHI_PUBLISH_NO_REVERSE, NULL, &address);
    }
    freeifaddrs(interfaces);
    if (error != 0) return error;
    if (!any) return AVAHI_ERR_NOT_FOUND;
    error = avahi_server_add_service(s, a->group, a->everywhere ? AVAHI_IF_UNSPEC : index, AVAHI_PROTO_UNSPEC, 0,
                                     a->name, service_type, NULL, NULL, a->port, NULL);
    return error != 0 ? error : avahi_s_entry_group_commit(a->group);
}

static void group_changed(AvahiServer *s, AvahiSEntryGroup *g, AvahiEntryGroupState state, void *user) {
    (void)g;
    announcement *a = user;
    if (state == AVAHI_ENTRY_GROUP_ESTABLISHED) settle(a, 0);
    if (state == AVAHI_ENTRY_GROUP_FAILURE) settle(a, avahi_server_errno(s));
    if (state != AVAHI_ENTRY_GROUP_COLLISION) return;
    char *other = avahi_alternative_service_name(a->name);
    if (other != NULL) snprintf(a->name, sizeof a->name, "%s", other);
    int error = other != NULL ? publish(a, s) : AVAHI_ERR_NO_MEMORY;
    avahi_free(other);
    if (error != 0) settle(a, error);
}

static void server_changed(AvahiServer *s, AvahiServerState state, void *user) {
    int error = 0;
    if (state == AVAHI_SERVER_RUNNING) error = publish(user, s);
    if (state == AVAHI_SERVER_FAILURE) error = avahi_server_errno(s);
    if (error != 0) settle(user, error);
}

/* Waits until it is announced. Returns an error of Avahi's, or 0. */
static int await_settled(announcement *a) {
    struct timespec until = clock_after(ANNOUNCE_S);
    int late = 0;
    pthread_mutex_lock(&a->lock);
    while (!a->settled && late == 0) late = pthread_cond_timedwait(&a->changed, &a->lock, &until);
    int error = a->settled ? a->error : AVAHI_ERR_TIMEOUT;
    pthread_mutex_unlock(&a->lock);
    return error;
}

/* Returns an error of Avahi's, or 0. */
static int start(announcement *a) {
    /* A name for the addresses that no other responder has, a daemon's on this machine among them. */
    char host[32];
    uint64_t number;
    int error = 0;
    if (getrandom(&number, sizeof number, 0) != sizeof number) return AVAHI_ERR_OS;
    snprintf(host, sizeof host, "ringspan-%016" PRIx64, number);
    a->poll = avahi_threaded_poll_new();
    if (a->poll == NULL) return AVAHI_ERR_NO_MEMORY;
    a->server = open_server(avahi_threaded_poll_get(a->poll), host, server_changed, a, &error);
    if (a->server == NULL) return error;
    if (avahi_threaded_poll_start(a->poll) != 0) return AVAHI_ERR_OS;
    return await_settled(a);
}

rs_status discover_announce(const char *name, int listener, announcement **out) {
    announcement *a = calloc(1, sizeof *a);
    if (a == NULL) return status_fail(RS_NO_MEMORY, "no memory to announce the head");
    pthread_mutex_init(&a->lock, NULL);
    clock_condition_init(&a->changed);
    snprintf(a->name, sizeof a->name, "%s", name);
    read_socket(a, listener);
    int error = start(a);
    if (error == 0) {
        *out = a;
        return RS_OK;
    }
    discover_withdraw(a);
    return status_fail(
        status_of(error),
        "cannot announce '%s' by multicast DNS: %s; leave out --discover, and name this head to the others", name,
        reason_of(error));
}

void discover_withdraw(announcement *a) {
    if (a == NULL) return;
    if (a->poll != NULL) avahi_threaded_poll_stop(a->poll);
    if (a->server != NULL) avahi_server_free(a->server); /* sends what says that it is gone */
    if (a->poll != NULL) avahi_threaded_poll_free(a->poll);
    pthread_cond_destroy(&a->changed);
    pthread_mutex_destroy(&a->lock);
    free(a);
}

/* ---- Finding ---- */

/* An announcement on one network; a head may be seen on several. */
typedef struct sighting {
    AvahiIfIndex interface;
    AvahiProtocol protocol;
    AvahiSServiceResolver *resolver;
    char name[DISCOVER_NAME_MAX];
    char host[AVAHI_DOMAIN_NAME_MAX]; /* under which its addresses go: one head, one host */
    char address[CHANNEL_PEER_MAX];   /* "": not known yet */
} sighting;

typedef struct search {
    AvahiServer *server;
    AvahiSServiceBrowser *browser;
    size_t count;
    int error; /* Avahi's, or 0 */
    sighting list[SIGHTINGS_MAX];
} search;

/* A stranger's words do not steer a terminal. */
static void copy_plain(char *to, size_t bytes, const char *from) {
    snprintf(to, bytes, "%s", from);
    for (; *to != 0; to++) {
        if (*to < ' ' || *to > '~') *to = '?';
    }
}

static void write_address(const AvahiAddress *a, AvahiIfIndex interface, uint16_t port, char out[CHANNEL_PEER_MAX]) {
    char text[AVAHI_ADDRESS_STR_MAX], zone[IF_NAMESIZE] = "";
    const uint8_t *bytes = a->data.data;
    avahi_address_snprint(text, sizeof text, a);
    if (a->proto == AVAHI_PROTO_INET) {
        snprintf(out, CHANNEL_PEER_MAX, "%s:%u", text, port);
    } else if (bytes[0] == 0xFE && (bytes[1] & 0xC0) == 0x80 && if_indextoname((unsigned)interface, zone) != NULL) {
        snprintf(out, CHANNEL_PEER_MAX, "[%s%%%s]:%u", text, zone, port); /* of the link alone */
    } else {
        snprintf(out, CHANNEL_PEER_MAX, "[%s]:%u", text, port);
    }
}

static void resolved(AvahiSServiceResolver *r, AvahiIfIndex interface, AvahiProtocol protocol, AvahiResolverEvent event,
                     const char *name, const char *type, const char *domain, const char *host, const AvahiAddress *a,
                     uint16_t port, AvahiStringList *text, AvahiLookupResultFlags flags, void *user) {
    (void)protocol, (void)name, (void)type, (void)domain, (void)text, (void)flags;
    search *s = user;
    if (event != AVAHI_RESOLVER_FOUND || a == NULL || host == NULL || port == 0) return; /* it goes on trying */
    for (sighting *i = s->list; i < s->list + s->count; i++) {
        if (i->resolver != r) continue;
        snprintf(i->host, sizeof i->host, "%s", host);
        write_address(a, interface, port, i->address);
    }
}

static void add_sighting(search *s, AvahiIfIndex interface, AvahiProtocol protocol, const char *name,
                         const char *domain) {
    if (s->count == SIGHTINGS_MAX) return;
    sighting *i = &s->list[s->count];
    *i = (sighting){.interface = interface, .protocol = protocol};
    copy_plain(i->name, sizeof i->name, name);
    i->resolver = avahi_s_service_resolver_prepare(s->server, interface, protocol, name, service_type, domain,
                                                   AVAHI_PROTO_UNSPEC, AVAHI_LOOKUP_NO_TXT, resolved, s);
    if (i->resolver == NULL) return; /* a name that cannot be */
    s->count++;
    avahi_s_service_resolver_start(i->resolver);
}

static void remove_sighting(search *s, AvahiIfIndex interface, AvahiProtocol protocol, const char *name) {
    char plain[DISCOVER_NAME_MAX];
    copy_plain(plain, sizeof plain, name);
    for (sighting *i = s->list; i < s->list + s->count; i++) {
        if (i->interface != interface || i->protocol != protocol || strcmp(i->name, plain) != 0) continue;
        avahi_s_service_resolver_free(i->resolver);
        *i = s->list[--s->count];
        return;
    }
}

static void browsed(AvahiSServiceBrowser *b, AvahiIfIndex interface, AvahiProtocol protocol, AvahiBrowserEvent event,
                    const char *name, const char *type, const char *domain, AvahiLookupResultFlags flags, void *user) {
    (void)b, (void)type, (void)flags;
    search *s = user;
    if (event == AVAHI_BROWSER_FAILURE) s->error = avahi_server_errno(s->server);
    if (event == AVAHI_BROWSER_NEW) add_sighting(s, interface, protocol, name, domain);
    if (event == AVAHI_BROWSER_REMOVE) remove_sighting(s, interface, protocol, name);
}

/* The server calls before it is there to be asked; what goes wrong shows when it is browsed. */
static void ignore_state(AvahiServer *s, AvahiServerState state, void *user) {
    (void)s, (void)state, (void)user;
}

/* Heads among the sightings: head[SIGHTINGS_MAX] receives one sighting of each. */
static size_t list_heads(const search *s, const sighting **head) {
    size_t count = 0;
    for (const sighting *i = s->list; i < s->list + s->count; i++) {
        size_t k = 0;
        while (k < count && strcmp(head[k]->host, i->host) != 0) k++;
        if (i->address[0] != 0 && k == count) head[count++] = i;
    }
    return count;
}

static rs_status choose(const search *s, double deadline_s, discover_head *out) {
    const sighting *head[SIGHTINGS_MAX];
    size_t count = list_heads(s, head);
    if (count == 0) {
        return status_fail(RS_PEER_LATE,
                           "no head was announced within %.0f s; is one waiting with --discover on this network, and "
                           "UDP port 5353 open? Else name it: 'ringspan join HOST:PORT'",
                           deadline_s);
    }
    if (count > 1) {
        char list[STATUS_TEXT_MAX / 2] = "";
        for (size_t i = 0, n = 0; i < count && n < sizeof list; i++) {
            n += (size_t)snprintf(list + n, sizeof list - n, "%s%s at %s", i > 0 ? ", " : "", head[i]->name,
                                  head[i]->address);
        }
        return status_fail(RS_BAD_ARGUMENT,
                           "%zu heads are announced: %s; name the one to join, as in 'ringspan join %s'", count, list,
                           head[0]->address);
    }
    snprintf(out->name, sizeof out->name, "%s", head[0]->name);
    snprintf(out->address, sizeof out->address, "%s", head[0]->address);
    return RS_OK;
}

/* Lets the network answer until a head has been found and others had their time, or the deadline. */
static rs_status listen_for(search *s, AvahiSimplePoll *poll, double deadline_s, bool (*go_on)(void *), void *user) {
    const sighting *head[SIGHTINGS_MAX];
    double until_s = clock_s() + deadline_s, settled_s = INFINITY;
    for (;;) {
        if (go_on != NULL && !go_on(user)) return status_fail(RS_CANCELLED, "stopped while looking for a head");
        double now_s = clock_s(), left_s = fmin(until_s, settled_s) - now_s;
        if (left_s <= 0) return RS_OK;
        int failed = avahi_simple_poll_iterate(poll, (int)(fmin(left_s, STEP_S) * 1000) + 1);
        if (failed != 0 || s->error != 0) {
            return status_fail(RS_IO, "multicast DNS failed: %s",
                               avahi_strerror(s->error != 0 ? s->error : AVAHI_ERR_OS));
        }
        settled_s = list_heads(s, head) == 0 ? INFINITY : fmin(settled_s, now_s + SETTLE_S);
    }
}

rs_status discover_find(double deadline_s, bool (*go_on)(void *user), void *user, discover_head *out) {
    int error = AVAHI_ERR_NO_MEMORY;
    search *s = calloc(1, sizeof *s);
    AvahiSimplePoll *poll = s != NULL ? avahi_simple_poll_new() : NULL;
    if (poll != NULL) s->server = open_server(avahi_simple_poll_get(poll), NULL, ignore_state, NULL, &error);
    if (poll != NULL && s->server != NULL) {
        s->browser = avahi_s_service_browser_new(s->server, AVAHI_IF_UNSPEC, AVAHI_PROTO_UNSPEC, service_type, NULL, 0,
                                                 browsed, s);
        error = s->browser != NULL ? 0 : avahi_server_errno(s->server);
    }
    rs_status status = RS_OK;
    if (error != 0) {
        status = status_fail(status_of(error),
                             "cannot look for a head by multicast DNS: %s; name it: 'ringspan join HOST:PORT'",
                             reason_of(error));
    }
    if (status == RS_OK) status = listen_for(s, poll, deadline_s, go_on, user);
    if (status == RS_OK) status = choose(s, deadline_s, out);
    if (s != NULL && s->server != NULL) avahi_server_free(s->server); /* its browser and resolvers, too */
    if (poll != NULL) avahi_simple_poll_free(poll);
    free(s);
    return status;
}
