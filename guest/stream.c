#include "stream.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "answer.h"
#include "fatal.h"

enum { MOST_STREAMS = 64 };

static struct stream streams[MOST_STREAMS];
static int epoll_fd = -1;

void streams_open(int epoll)
{
    epoll_fd = epoll;
}

static struct stream *free_slot(void)
{
    for (size_t i = 0; i < MOST_STREAMS; i++)
        if (!streams[i].open)
            return &streams[i];
    return NULL;
}

struct stream *stream_new(uint32_t id, const struct stream_kind *kind, void *state)
{
    struct stream *s = free_slot();
    if (s == NULL) {
        send_error(id, "busy", "too many requests are open", 0);
        return NULL;
    }
    *s = (struct stream){.open = true, .id = id, .kind = kind, .state = state, .granted = FIRST_CREDIT};
    for (size_t i = 0; i < CHANNELS; i++)
        s->credit[i] = FIRST_CREDIT;
    return s;
}

struct stream *stream_find(uint32_t id)
{
    for (size_t i = 0; i < MOST_STREAMS; i++)
        if (streams[i].open && streams[i].id == id)
            return &streams[i];
    return NULL;
}

struct stream *stream_search(const struct stream_kind *kind, bool (*is)(const struct stream *, int), int argument)
{
    for (size_t i = 0; i < MOST_STREAMS; i++)
        if (streams[i].open && streams[i].kind == kind && is(&streams[i], argument))
            return &streams[i];
    return NULL;
}

void stream_close(struct stream *s)
{
    s->kind->close(s);
    memset(s, 0, sizeof *s);
}

void forget_client(void)
{
    for (size_t i = 0; i < MOST_STREAMS; i++)
        if (streams[i].open)
            stream_close(&streams[i]);
    buffer_take(outbox(), buffer_length(outbox()));
}

bool streams_pump(void)
{
    bool moved = false;
    for (size_t i = 0; i < MOST_STREAMS; i++)
        if (streams[i].open && streams[i].kind->pump != NULL)
            moved |= streams[i].kind->pump(&streams[i]);
    return moved;
}

void stream_watch(struct stream *s, int fd, uint8_t channel)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET};
    event.data.u64 = (uint64_t)s->id << 8 | channel;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        fatal_errno("cannot watch a descriptor");
}

void streams_event(uint64_t token)
{
    struct stream *s = stream_find((uint32_t)(token >> 8));
    if (s != NULL && s->kind->ready != NULL)
        s->kind->ready(s, (uint8_t)token);
}

size_t stream_allowance(const struct stream *s, uint8_t channel)
{
    if (!outbox_has_room())
        return 0;
    return s->credit[channel] < LARGEST_CHUNK ? (size_t)s->credit[channel] : LARGEST_CHUNK;
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
    send_credit(s->id, CHANNEL_CONTENT, (uint32_t)length);
}
