#include "ports.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "answer.h"
#include "loopback.h"
#include "memory.h"
#include "operation.h"
#include "path.h"
#include "pipes.h"
#include "stream.h"
#include "tunnel.h"

/* How somebody in the guest is connected to the host. LISTEN is a stream that stays: each caller is taken, kept here,
 * and told of by its number. The host attaches it: then it is a tunnel, on a stream of its own. Those that wait for
 * that are few; more wait with the kernel. */

enum { MOST_WAITING = 16 };

struct caller {
    uint32_t number;
    /* -1 where there is none. */
    int fd;
};

struct listener {
    int fd;
    bool ready;
    uint32_t last_number;
    struct caller waiting[MOST_WAITING];
};

static void send_event(uint32_t stream, const char *name, const uint32_t *number)
{
    size_t mark = frame_begin(outbox(), EVENT, stream);
    put_text(outbox(), name);
    if (number != NULL)
        put_number(outbox(), *number);
    frame_end(outbox(), mark);
}

static struct caller *find_caller(struct listener *l, uint64_t number)
{
    for (int i = 0; i < MOST_WAITING; i++)
        if (l->waiting[i].fd >= 0 && l->waiting[i].number == number)
            return &l->waiting[i];
    return NULL;
}

static struct caller *free_place(struct listener *l)
{
    for (int i = 0; i < MOST_WAITING; i++)
        if (l->waiting[i].fd < 0)
            return &l->waiting[i];
    return NULL;
}

static bool listener_pump(struct stream *s)
{
    struct listener *l = s->state;
    struct caller *place = l->ready && outbox_has_room() ? free_place(l) : NULL;
    if (place == NULL)
        return false;
    int fd = loopback_accept(l->fd);
    if (fd < 0) {
        /* Without descriptors or memory callers go on waiting, and nothing tells of them again: they are looked for
         * whenever something else has happened. */
        l->ready = errno != EAGAIN;
        return errno == EINTR || errno == ECONNABORTED;
    }
    *place = (struct caller){.number = ++l->last_number, .fd = fd};
    send_event(s->id, "connection", &place->number);
    return true;
}

static void listener_ready(struct stream *s, uint8_t channel)
{
    struct listener *l = s->state;
    (void)channel;
    l->ready = true;
}

static void listener_close(struct stream *s)
{
    struct listener *l = s->state;
    for (int i = 0; i < MOST_WAITING; i++) {
        if (l->waiting[i].fd >= 0)
            loopback_reset_on_close(l->waiting[i].fd);
        pipe_close(&l->waiting[i].fd);
    }
    pipe_close(&l->fd);
    free(l);
}

static const struct stream_kind LISTENER = {
    .is_tunnel = true,
    .pump = listener_pump,
    .ready = listener_ready,
    .close = listener_close,
};

static bool read_port(struct field given, uint16_t *out)
{
    uint64_t port;
    bool sound = field_number(given, &port) && port >= 1 && port <= UINT16_MAX;
    *out = sound ? (uint16_t)port : 0;
    return sound;
}

/* 0 where none is asked for. */
static bool take_window(struct fields *f, uint32_t *out)
{
    uint64_t window = LEAST_WINDOW;
    bool is_asked = f->count > 0;
    bool sound = !is_asked || field_number(field_take(f), &window);
    *out = is_asked ? (uint32_t)window : 0;
    return sound && window >= LEAST_WINDOW && window <= MOST_WINDOW;
}

/* -1 with errno set. */
static int connect_local(const struct sockaddr_un *to)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)to, sizeof *to) == 0)
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

/* Between two programs of the guest a Unix socket takes a quarter of the time that TCP does under emulation. */
static void connect_path(uint32_t stream, struct field given, uint32_t window)
{
    char path[PATH_MAX];
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd = -1;
    errno = EINVAL;
    if (field_path(given, path, sizeof path) && path_rooted(path, to.sun_path, sizeof to.sun_path))
        fd = connect_local(&to);
    if (fd >= 0)
        tunnel_take(stream, fd, window);
    else if (errno == ECONNREFUSED || errno == ENOENT)
        send_error(stream, "refused", "nothing listens at that path of the guest", errno);
    else
        send_errno(stream, "the path of the guest could not be connected to", errno);
}

void do_connect(uint32_t stream, struct fields *f)
{
    struct field at = field_take(f);
    uint16_t port = 0;
    uint32_t window;
    bool is_path = at.length > 0 && at.bytes[0] == '/';
    if (!(is_path || read_port(at, &port)) || !take_window(f, &window))
        send_invalid(stream, "a port from 1 to 65535 is needed, and a window of 64 KiB to 1 MiB if any");
    else if (is_path)
        connect_path(stream, at, window);
    else
        tunnel_connect(stream, port, window);
}

static void start_listening(uint32_t stream, int fd)
{
    struct listener *l = zeroed(sizeof *l);
    *l = (struct listener){.fd = fd, .ready = true};
    for (int i = 0; i < MOST_WAITING; i++)
        l->waiting[i].fd = -1;
    struct stream *s = stream_new(stream, &LISTENER, l);
    if (s == NULL) {
        listener_close(&(struct stream){.state = l});
        return;
    }
    stream_watch(s, fd, CHANNEL_CONTENT);
    send_event(stream, "listening", NULL);
}

/* 127.0.0.1, where none is said. */
static bool take_address(struct fields *f, uint32_t *out)
{
    char text[INET_ADDRSTRLEN];
    struct in_addr address = {.s_addr = htonl(INADDR_LOOPBACK)};
    bool sound =
        f->count == 0 || (field_text(field_take(f), text, sizeof text) && inet_pton(AF_INET, text, &address) == 1);
    *out = ntohl(address.s_addr);
    return sound && loopback_is_own(*out);
}

void do_listen(uint32_t stream, struct fields *f)
{
    uint16_t port;
    uint32_t address;
    if (!read_port(field_take(f), &port) || !take_address(f, &address)) {
        send_invalid(stream, "a port from 1 to 65535 is needed, and an address of 127.0.0.0/8 if any");
        return;
    }
    int fd = loopback_listen(address, port);
    if (fd >= 0)
        start_listening(stream, fd);
    else if (errno == EADDRINUSE)
        send_error(stream, "exists", "somebody listens at that port of the guest", errno);
    else
        send_errno(stream, "the guest cannot listen at that port", errno);
}

void do_attach(uint32_t stream, struct fields *f)
{
    uint64_t target, number;
    uint32_t window;
    if (!field_number(field_take(f), &target) || !field_number(field_take(f), &number) || !take_window(f, &window)) {
        send_invalid(stream, "a stream, the number of a connection, and a window of 64 KiB to 1 MiB if any are needed");
        return;
    }
    struct stream *s = target <= UINT32_MAX ? stream_find((uint32_t)target) : NULL;
    struct caller *caller = s != NULL && s->kind == &LISTENER ? find_caller(s->state, number) : NULL;
    if (caller == NULL) {
        send_error(stream, "not-found", "no such connection waits there", 0);
        return;
    }
    int fd = caller->fd;
    caller->fd = -1;
    tunnel_take(stream, fd, window);
}

static void end_listening(struct stream *s)
{
    send_error(s->id, "reset", "nobody listens for the host before the machine is frozen", ECONNRESET);
    stream_close(s);
}

void ports_reset(void)
{
    tunnels_reset();
    streams_each(&LISTENER, end_listening);
}
