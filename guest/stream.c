#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "answer.h"
#include "fatal.h"
#include "memory.h"

/* Each may be a program with three pipes. A request that finds no slot is refused; a host that queues those beyond this
 * number, as vmfork does, never meets that. */
enum { MOST_STREAMS = 1024, MOST_TUNNELS = 256 };

/* Open streams, and NULL where one was closed. Grows as needed: a template holds one slot, not a thousand. */
static struct stream **streams;
static size_t slots;
static uint64_t last_number;
static int epoll_fd = -1;

void streams_open(int epoll)
{
    epoll_fd = epoll;
}

static struct stream **add_slots(void)
{
    size_t more = slots ? slots * 2 : 16;
    struct stream **grown = realloc(streams, more * sizeof *streams);
    if (grown == NULL)
        fatal("out of memory");
    memset(grown + slots, 0, (more - slots) * sizeof *streams);
    streams = grown;
    struct stream **first = streams + slots;
    slots = more;
    return first;
}

static bool are_too_many(bool tunnels)
{
    size_t count = 0;
    for (size_t i = 0; i < slots; i++)
        count += streams[i] != NULL && streams[i]->kind->is_tunnel == tunnels;
    return count >= (tunnels ? MOST_TUNNELS : MOST_STREAMS);
}

static struct stream **free_slot(void)
{
    for (size_t i = 0; i < slots; i++)
        if (streams[i] == NULL)
            return &streams[i];
    return add_slots();
}

struct stream *stream_new(uint32_t id, const struct stream_kind *kind, void *state)
{
    if (are_too_many(kind->is_tunnel)) {
        send_error(id, "busy", kind->is_tunnel ? "too many connections are open" : "too many requests are open", 0);
        return NULL;
    }
    struct stream **slot = free_slot();
    struct stream *s = zeroed(sizeof *s);
    *s = (struct stream){.kind = kind, .state = state, .number = ++last_number};
    stream_take(s, id);
    return *slot = s;
}

struct stream *stream_find(uint32_t id)
{
    for (size_t i = 0; i < slots; i++)
        if (streams[i] != NULL && streams[i]->id == id && id != 0)
            return streams[i];
    return NULL;
}

static struct stream *find_by_number(uint64_t number)
{
    for (size_t i = 0; i < slots; i++)
        if (streams[i] != NULL && streams[i]->number == number)
            return streams[i];
    return NULL;
}

struct stream *stream_find_left(uint64_t number)
{
    struct stream *s = find_by_number(number);
    return s != NULL && s->id == 0 ? s : NULL;
}

void stream_take(struct stream *s, uint32_t id)
{
    s->id = id;
    s->granted = FIRST_CREDIT;
    s->owed = 0;
    for (size_t i = 0; i < CHANNELS; i++)
        s->credit[i] = FIRST_CREDIT;
}

struct stream *stream_of_kind(const struct stream_kind *kind)
{
    for (size_t i = 0; i < slots; i++)
        if (streams[i] != NULL && streams[i]->kind == kind)
            return streams[i];
    return NULL;
}

void streams_each(const struct stream_kind *kind, void (*act)(struct stream *s))
{
    for (size_t i = 0; i < slots; i++)
        if (streams[i] != NULL && streams[i]->kind == kind)
            act(streams[i]);
}

void streams_child_ended(pid_t pid, int status, const struct rusage *used)
{
    for (size_t i = 0; i < slots; i++) {
        struct stream *s = streams[i];
        if (s == NULL || s->child != pid)
            continue;
        s->child = 0;
        s->kind->child_ended(s, status, used);
        return;
    }
}

void stream_close(struct stream *s)
{
    s->kind->close(s);
    for (size_t i = 0; i < slots; i++)
        if (streams[i] == s)
            streams[i] = NULL;
    free(s);
}

void forget_client_but(bool (*stays)(const struct stream *s))
{
    for (size_t i = 0; i < slots; i++) {
        if (streams[i] == NULL)
            continue;
        if (stays(streams[i]))
            streams[i]->id = 0;
        else
            stream_close(streams[i]);
    }
    buffer_take(outbox(), buffer_length(outbox()));
}

static bool nothing_stays(const struct stream *s)
{
    (void)s;
    return false;
}

void forget_client(void)
{
    forget_client_but(nothing_stays);
}

bool streams_pump(void)
{
    bool moved = false;
    for (size_t i = 0; i < slots; i++)
        if (streams[i] != NULL && streams[i]->kind->pump != NULL)
            moved |= streams[i]->kind->pump(streams[i]);
    return moved;
}

static bool control_watch(const struct stream *s, int operation, int fd, uint8_t channel, uint32_t events)
{
    struct epoll_event event = {.events = events | EPOLLET, .data.u64 = s->number << 8 | channel};
    return epoll_ctl(epoll_fd, operation, fd, &event) == 0;
}

void stream_watch(struct stream *s, int fd, uint8_t channel)
{
    if (!control_watch(s, EPOLL_CTL_ADD, fd, channel, EPOLLIN | EPOLLOUT) && errno != EPERM)
        fatal_errno("cannot watch a descriptor");
}

void stream_watch_room(struct stream *s, int fd, uint8_t channel, bool is_event)
{
    if (!control_watch(s, EPOLL_CTL_MOD, fd, channel, EPOLLIN | (is_event ? EPOLLOUT : 0)))
        fatal_errno("cannot watch a descriptor");
}

void streams_event(uint64_t token)
{
    struct stream *s = find_by_number(token >> 8);
    if (s != NULL && s->kind->ready != NULL)
        s->kind->ready(s, (uint8_t)token);
}

size_t stream_allowance(const struct stream *s, uint8_t channel)
{
    if (!outbox_has_room())
        return 0;
    return s->credit[channel] < LARGEST_CHUNK ? (size_t)s->credit[channel] : LARGEST_CHUNK;
}

static void settle(struct stream *s)
{
    size_t owed = s->owed;
    s->owed = 0;
    stream_grant(s, owed);
}

long stream_send_from(struct stream *s, uint8_t channel, int fd, size_t limit)
{
    struct buffer *out = outbox();
    size_t mark = frame_begin(out, DATA, s->id);
    put_u8(out, channel);
    ssize_t got = read(fd, buffer_room(out, limit), limit);
    if (got <= 0) {
        int error = errno;
        buffer_truncate(out, mark);
        errno = error;
        return got;
    }
    buffer_grow(out, (size_t)got);
    frame_end(out, mark);
    s->credit[channel] -= (uint64_t)got;
    settle(s);
    return got;
}

void stream_send(struct stream *s, uint8_t channel, const void *bytes, size_t length)
{
    struct buffer *out = outbox();
    size_t mark = frame_begin(out, DATA, s->id);
    put_u8(out, channel);
    buffer_add(out, bytes, length);
    frame_end(out, mark);
    s->credit[channel] -= length;
}

void stream_grant(struct stream *s, size_t length)
{
    if (length == 0)
        return;
    s->granted += (uint32_t)length;
    if (s->id != 0)
        send_credit(s->id, s->kind->channel, (uint32_t)length);
}

void stream_grant_late(struct stream *s, size_t length)
{
    s->owed += (uint32_t)length;
    if (s->owed >= MOST_OWED)
        settle(s);
}

bool streams_owe(void)
{
    for (size_t i = 0; i < slots; i++)
        if (streams[i] != NULL && streams[i]->owed > 0)
            return true;
    return false;
}

void streams_settle(void)
{
    for (size_t i = 0; i < slots; i++)
        if (streams[i] != NULL)
            settle(streams[i]);
}
