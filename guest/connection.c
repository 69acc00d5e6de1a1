#include "connection.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "answer.h"
#include "frame.h"
#include "mode.h"
#include "request.h"
#include "stream.h"

/* How it works. epoll is edge-triggered: it tells once that the line became readable or writable, and that stays noted
 * in `readable` and `writable` until a call says EAGAIN. Each round reads once, lets every stream do a piece of its
 * work, and writes what is queued. Between two rounds the events that came meanwhile are taken note of, without waiting
 * for any as long as rounds move something: so long work, such as a removal, holds up neither requests nor programs.
 *
 * A client comes and goes in three ways, and the parser's place in the stream of bytes is what tells them apart:
 *
 *   HELLO       forget_client, by the request itself; bytes before it belonged to someone else
 *   hang-up     forget_client; the parser stays, because the next client's bytes may stand behind a half-sent frame
 *   violation   forget_client, ERROR protocol; the parser is lost and looks for the next HELLO
 */

enum {
    READ_SIZE = 65536,
    /* Above this no request is read: a host that asks but does not listen is made to wait. */
    ANSWER_LIMIT = 1024 * 1024,
};

static int line_fd = -1;
static enum line line_kind;
static bool readable, writable, connected, hung_up;
static struct parser parser;

void connection_open(int fd, enum line line)
{
    line_fd = fd;
    line_kind = line;
    readable = writable = true;
}

void connection_event(uint32_t events)
{
    readable |= (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0;
    writable |= (events & EPOLLOUT) != 0;
    hung_up |= connected && (events & EPOLLHUP) != 0;
    connected = (events & EPOLLHUP) == 0;
}

static _Noreturn void end_with_socket(void)
{
    forget_client();
    exit(0);
}

static bool still_hung_up(void)
{
    struct pollfd now = {.fd = line_fd, .events = POLLIN};
    return poll(&now, 1, 0) > 0 && (now.revents & POLLHUP) != 0;
}

/* The parser stays as it is: bytes of the next client may be in the queue already, behind the last one's, and a client
 * that cares sends idle bytes first. For the same reason a hang-up that is over by now is left alone: a client that
 * took the line since then would lose what it asked for. */
static void notice_hang_up(void)
{
    hung_up = false;
    if (line_kind == LINE_SOCKET)
        end_with_socket();
    if (still_hung_up())
        forget_client();
}

static void answer_violation(uint32_t stream, const char *how)
{
    forget_client();
    parser_lose(&parser);
    send_error(stream, "protocol", how, 0);
}

static void handle_frames(void)
{
    struct frame frame;
    enum parsed parsed;
    while ((parsed = parser_next(&parser, &frame)) != PARSED_NOTHING) {
        /* In a fork of a running machine the rest of a frame that its parent's client was sending never comes. Filled
         * up, it would be input of a program, or another request. */
        if (parsed == PARSED_FRAME && parser_is_cut(&parser))
            continue;
        const char *how = parsed == PARSED_FRAME ? handle_frame(&frame) : "bytes that are no frame";
        if (how != NULL)
            answer_violation(frame.stream, how);
    }
}

static bool read_requests(void)
{
    if (!readable || mode.is_ending || buffer_length(outbox()) >= ANSWER_LIMIT)
        return false;
    buffer_take(&parser.held, 0);
    ssize_t got = read(line_fd, buffer_room(&parser.held, READ_SIZE), READ_SIZE);
    if (got <= 0) {
        readable = got < 0 && errno == EINTR;
        if (line_kind == LINE_SOCKET && (got == 0 || (errno != EAGAIN && errno != EINTR)))
            end_with_socket();
        return readable;
    }
    buffer_grow(&parser.held, (size_t)got);
    handle_frames();
    return true;
}

static bool write_answers(void)
{
    struct buffer *out = outbox();
    if (!writable || buffer_length(out) == 0)
        return false;
    ssize_t put = write(line_fd, buffer_head(out), buffer_length(out));
    if (put < 0) {
        writable = errno == EINTR;
        if (errno == EPIPE && line_kind == LINE_SOCKET)
            end_with_socket();
        return writable;
    }
    buffer_take(out, (size_t)put);
    return true;
}

bool connection_work(void)
{
    if (hung_up)
        notice_hang_up();
    bool moved = read_requests();
    moved |= streams_pump();
    moved |= write_answers();
    if (mode.is_ending && (buffer_length(outbox()) == 0 || !connected))
        mode.power_off();
    return moved;
}
