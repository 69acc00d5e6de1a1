#include "connection.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "errors.h"
#include "fatal.h"
#include "request.h"
#include "stream.h"

enum {
    READ_SIZE = 65536,
    /* Above this no stream adds data, so what a slow line holds up is bounded and credit is not spent in vain. */
    DATA_LIMIT = 256 * 1024,
    /* Above this no request is read: a host that asks but does not listen is made to wait. */
    ANSWER_LIMIT = 1024 * 1024,
};

static int line_fd = -1;
static enum line line_kind;
static bool readable, writable, connected, hung_up;
static struct parser parser;
static struct buffer out;
static void (*finish)(void);

struct buffer *outbox(void)
{
    return &out;
}

bool outbox_has_room(void)
{
    return buffer_length(&out) < DATA_LIMIT;
}

void connection_open(int fd, enum line line)
{
    line_fd = fd;
    line_kind = line;
    readable = writable = true;
}

void connection_finish(void (*then)(void))
{
    finish = then;
}

void connection_reset(void)
{
    streams_close_all();
    buffer_take(&out, buffer_length(&out));
}

void connection_violated(uint32_t stream, const char *how)
{
    connection_reset();
    parser_lose(&parser);
    send_error(stream, "protocol", how, 0);
}

void send_done(uint32_t stream)
{
    frame_end(&out, frame_begin(&out, REPLY, stream));
}

void send_error(uint32_t stream, const char *code, const char *message, int error)
{
    size_t mark = frame_begin(&out, ERROR, stream);
    put_text(&out, code);
    put_text(&out, message);
    put_number(&out, error);
    frame_end(&out, mark);
}

void send_errno(uint32_t stream, const char *message, int error)
{
    send_error(stream, error_code(error), message, error);
}

void send_invalid(uint32_t stream, const char *message)
{
    send_error(stream, "invalid", message, EINVAL);
}

void send_eof(uint32_t stream, uint8_t channel)
{
    size_t mark = frame_begin(&out, END_OF_FILE, stream);
    put_u8(&out, channel);
    frame_end(&out, mark);
}

void send_credit(uint32_t stream, uint8_t channel, uint32_t bytes)
{
    size_t mark = frame_begin(&out, CREDIT, stream);
    put_u8(&out, channel);
    put_u32(&out, bytes);
    frame_end(&out, mark);
}

void end_reply(uint32_t stream, size_t mark)
{
    if (!frame_end(&out, mark))
        send_invalid(stream, "the answer is larger than a frame");
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
    connection_reset();
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
        connection_reset();
}

static void handle_frames(void)
{
    for (;;) {
        struct frame frame;
        switch (parser_next(&parser, &frame)) {
        case PARSED_FRAME:
            handle_frame(&frame);
            break;
        case PARSED_GARBAGE:
            connection_violated(frame.stream, "bytes that are no frame");
            break;
        case PARSED_NOTHING:
            return;
        }
    }
}

static bool read_requests(void)
{
    if (!readable || finish != NULL || buffer_length(&out) >= ANSWER_LIMIT)
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
    if (!writable || buffer_length(&out) == 0)
        return false;
    ssize_t put = write(line_fd, buffer_head(&out), buffer_length(&out));
    if (put < 0) {
        writable = errno == EINTR;
        if (errno == EPIPE && line_kind == LINE_SOCKET)
            end_with_socket();
        return writable;
    }
    buffer_take(&out, (size_t)put);
    return true;
}

void connection_work(void)
{
    if (hung_up)
        notice_hang_up();
    bool moved;
    do {
        moved = write_answers();
        moved |= read_requests();
        moved |= streams_pump();
    } while (moved || (writable && buffer_length(&out) > 0));
    if (finish != NULL && (buffer_length(&out) == 0 || !connected))
        finish();
}
