#include "tunnel.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "answer.h"
#include "loopback.h"
#include "memory.h"
#include "pipes.h"
#include "stream.h"

/* How a tunnel lives.
 *
 *   connecting --> connected --> one side has ended --> both have: REPLY
 *       |              `----------------`-- lost: ERROR
 *       `-- refused: ERROR
 *
 * Bytes go both ways on channel 0. What the program sends is read straight into DATA frames as far as credit goes, so a
 * host that is slow stops the program. What the host sends waits here until the program takes it, which its credit
 * bounds. A host that asked for a window has all of it from when the connection stands: with 64 KiB under way it waited
 * a round trip for each half of that.
 *
 * A connection that is let go before the host has said that it sends nothing more is reset: a plain close would tell
 * the program that it has all there was. */

struct tunnel {
    int fd;
    int family;
    uint16_t port;
    /* What the host asked to have under way; 0 where it did not. */
    uint32_t window;
    bool is_connected;
    bool readable, writable;
    /* Room to write is an event: while it is being connected, and while the program takes nothing. */
    bool awaits_room;
    /* The program sends nothing more, and the host was told. */
    bool program_ended;
    /* The host sends nothing more, and, once it has all, the program was told. */
    bool host_ended, program_told;
    struct buffer held;
};

static void send_connected(uint32_t stream, uint32_t window)
{
    size_t mark = frame_begin(outbox(), EVENT, stream);
    put_text(outbox(), "connected");
    if (window > 0)
        put_number(outbox(), window);
    frame_end(outbox(), mark);
}

static void send_refused(uint32_t stream, int error)
{
    if (error == ECONNREFUSED)
        send_error(stream, "refused", "nothing listens at that port of the guest", error);
    else
        send_errno(stream, "the port of the guest could not be reached", error);
}

static void lose(struct stream *s, int error)
{
    bool by_peer = error == ECONNRESET || error == EPIPE || error == ENOTCONN;
    send_error(s->id, by_peer ? "reset" : "io", "the connection to the port of the guest was lost", error);
    stream_close(s);
}

static void await_room(struct stream *s, struct tunnel *t, bool awaits)
{
    if (awaits != t->awaits_room)
        stream_watch_room(s, t->fd, CHANNEL_CONTENT, awaits);
    t->awaits_room = awaits;
}

static void watch(struct stream *s, struct tunnel *t)
{
    stream_watch(s, t->fd, CHANNEL_CONTENT);
    t->awaits_room = true;
}

static bool try_family(struct stream *s, struct tunnel *t, int family)
{
    t->family = family;
    t->fd = loopback_socket(family);
    /* The event says when the connection stands, or was refused; where it is refused at once, that is found then. */
    if (t->fd < 0 || !loopback_connect(t->fd, family, t->port))
        return false;
    watch(s, t);
    t->writable = true;
    return true;
}

/* A service may listen on ::1 alone. Where there is no IPv6, the first answer is the one that counts. */
static void refuse(struct stream *s, struct tunnel *t, int error)
{
    pipe_close(&t->fd);
    if (error == ECONNREFUSED && t->family == AF_INET && try_family(s, t, AF_INET6))
        return;
    send_refused(s->id, t->family == AF_INET6 ? ECONNREFUSED : error);
    stream_close(s);
}

static void connected(struct stream *s, struct tunnel *t)
{
    t->is_connected = t->readable = t->writable = true;
    await_room(s, t, false);
    send_connected(s->id, t->window);
    if (t->window > FIRST_CREDIT)
        stream_grant(s, t->window - FIRST_CREDIT);
}

static bool pump_connecting(struct stream *s, struct tunnel *t)
{
    if (!t->writable)
        return false;
    t->writable = false;
    if (loopback_is_connected(t->fd, t->family, t->port))
        connected(s, t);
    else if (errno != EALREADY && errno != EINPROGRESS && errno != EINTR)
        refuse(s, t, errno);
    else
        return false;
    return true;
}

static bool must_wait(bool *ready)
{
    *ready = errno == EINTR;
    return errno == EAGAIN || errno == EINTR;
}

/* What pump functions give: nothing to do, something done, or the connection is lost with errno. */
enum moved { STOOD, MOVED, LOST };

static enum moved pump_out(struct stream *s, struct tunnel *t)
{
    size_t limit = t->program_ended || !t->readable ? 0 : stream_allowance(s, CHANNEL_CONTENT);
    if (limit == 0)
        return STOOD;
    long got = stream_send_from(s, CHANNEL_CONTENT, t->fd, limit);
    if (got < 0)
        return !must_wait(&t->readable) ? LOST : t->readable ? MOVED : STOOD;
    if (got == 0) {
        t->program_ended = true;
        send_eof(s->id, CHANNEL_CONTENT);
    }
    return MOVED;
}

static enum moved write_held(struct stream *s, struct tunnel *t)
{
    ssize_t put = write(t->fd, buffer_head(&t->held), buffer_length(&t->held));
    if (put < 0 && !must_wait(&t->writable))
        return LOST;
    if (put > 0) {
        buffer_take(&t->held, (size_t)put);
        stream_grant_late(s, (size_t)put);
    }
    /* Once it is one, until all was taken: the program that stood still takes more than a piece. */
    await_room(s, t, !t->writable || (t->awaits_room && buffer_length(&t->held) > 0));
    return t->writable ? MOVED : STOOD;
}

static enum moved pump_in(struct stream *s, struct tunnel *t)
{
    if (buffer_length(&t->held) > 0)
        return t->writable ? write_held(s, t) : STOOD;
    if (!t->host_ended || t->program_told)
        return STOOD;
    t->program_told = true;
    return shutdown(t->fd, SHUT_WR) == 0 ? MOVED : LOST;
}

static bool tunnel_pump(struct stream *s)
{
    struct tunnel *t = s->state;
    if (!t->is_connected)
        return pump_connecting(s, t);
    enum moved out = pump_out(s, t);
    enum moved in = out == LOST ? LOST : pump_in(s, t);
    if (in == LOST) {
        lose(s, errno);
    } else if (t->program_ended && t->program_told) {
        send_done(s->id);
        stream_close(s);
    } else {
        return out == MOVED || in == MOVED;
    }
    return true;
}

static void tunnel_data(struct stream *s, const uint8_t *bytes, size_t length)
{
    struct tunnel *t = s->state;
    buffer_add(&t->held, bytes, length);
}

static void tunnel_eof(struct stream *s)
{
    struct tunnel *t = s->state;
    t->host_ended = true;
}

static void tunnel_ready(struct stream *s, uint8_t channel)
{
    struct tunnel *t = s->state;
    (void)channel;
    t->readable = t->writable = true;
}

static void tunnel_close(struct stream *s)
{
    struct tunnel *t = s->state;
    bool program_has_all = t->host_ended && buffer_length(&t->held) == 0;
    if (t->fd >= 0 && !program_has_all)
        loopback_reset_on_close(t->fd);
    pipe_close(&t->fd);
    buffer_free(&t->held);
    free(t);
}

static const struct stream_kind TUNNEL = {
    .is_tunnel = true,
    .data = tunnel_data,
    .eof = tunnel_eof,
    .pump = tunnel_pump,
    .ready = tunnel_ready,
    .close = tunnel_close,
};

void tunnel_connect(uint32_t stream, uint16_t port, uint32_t window)
{
    struct tunnel *t = zeroed(sizeof *t);
    *t = (struct tunnel){.fd = -1, .port = port, .window = window};
    struct stream *s = stream_new(stream, &TUNNEL, t);
    if (s == NULL)
        free(t);
    else if (!try_family(s, t, AF_INET))
        refuse(s, t, errno);
}

void tunnel_take(uint32_t stream, int fd, uint32_t window)
{
    struct tunnel *t = zeroed(sizeof *t);
    *t = (struct tunnel){.fd = fd, .window = window};
    struct stream *s = stream_new(stream, &TUNNEL, t);
    if (s == NULL) {
        tunnel_close(&(struct stream){.state = t});
        return;
    }
    watch(s, t);
    connected(s, t);
}

static void reset(struct stream *s)
{
    send_error(s->id, "reset", "connections are reset before the machine is frozen", ECONNRESET);
    stream_close(s);
}

void tunnels_reset(void)
{
    streams_each(&TUNNEL, reset);
}
