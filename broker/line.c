#include "line.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>

enum { QUEUE_LIMIT = 256 * 1024 };

static int line_fd = -1;
static struct buffer queue;
static struct traffic traffic;

void line_open(int line)
{
    line_fd = line;
}

struct buffer *line_queue(void)
{
    return &queue;
}

bool line_has_room(void)
{
    return buffer_length(&queue) < QUEUE_LIMIT;
}

void line_send(uint8_t kind, uint32_t id, const uint8_t *payload, size_t length)
{
    size_t mark = frame_begin(&queue, kind, id);
    buffer_add(&queue, payload, length);
    frame_end(&queue, mark);
}

void line_send_credit(uint32_t id, uint8_t channel, uint32_t bytes)
{
    size_t mark = frame_begin(&queue, CREDIT, id);
    put_u8(&queue, channel);
    put_u32(&queue, bytes);
    frame_end(&queue, mark);
}

void line_send_kill(uint32_t id, uint32_t target)
{
    size_t mark = frame_begin(&queue, REQUEST, id);
    put_u8(&queue, OP_KILL);
    put_number(&queue, target);
    put_number(&queue, SIGKILL);
    frame_end(&queue, mark);
}

const struct traffic *line_traffic(void)
{
    return &traffic;
}

void line_note_received(size_t bytes)
{
    traffic.received += bytes;
}

bool line_flush(void)
{
    if (buffer_length(&queue) == 0)
        return true;
    ssize_t sent = send(line_fd, buffer_head(&queue), buffer_length(&queue), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0)
        return errno == EAGAIN || errno == EINTR;
    buffer_take(&queue, (size_t)sent);
    traffic.sent += (uint64_t)sent;
    return true;
}
