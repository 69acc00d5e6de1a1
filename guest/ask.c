#include "ask.h"

#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "answer.h"
#include "memory.h"
#include "operation.h"
#include "path.h"
#include "pipes.h"
#include "stream.h"

/* How a program of the guest asks the host. SERVE is a stream that stays: as long as it is open there is a socket, to
 * which programs connect. A packet is a question, the host is told of it by the program's number, and ANSWER is the
 * packet that goes back. Of a program that has not got its answer nothing more is read, so that it fills no queue but
 * its own.
 *
 * A stream that its client has left keeps all of that. Who serves next is told of each question without an answer: in a
 * fork of a running machine the programs that wait are the same, and another host answers. */

enum {
    MOST_ASKING = 64,
    LONGEST_QUESTION = 4096,
    /* Behind those of the programs, which are their places. */
    EVENT_SOCKET = MOST_ASKING,
};

static const char SOCKET[] = "/run/vmfork/ask";

struct asking {
    uint32_t number;
    /* -1 where there is none. */
    int fd;
    struct ucred who;
    bool ready;
    /* It has asked, and has no answer; and this client of ours knows that. */
    bool waits, is_told;
    /* Some client of ours knows of it. */
    bool is_known;
    struct buffer question;
};

struct serving {
    int fd;
    bool ready;
    bool is_announced;
    uint32_t last_number;
    struct asking all[MOST_ASKING];
};

static void send_serving(uint32_t stream)
{
    size_t mark = frame_begin(outbox(), EVENT, stream);
    put_text(outbox(), "serving");
    frame_end(outbox(), mark);
}

static void send_asked(uint32_t stream, const struct asking *a)
{
    size_t mark = frame_begin(outbox(), EVENT, stream);
    put_text(outbox(), "asked");
    put_number(outbox(), a->number);
    put_number(outbox(), a->who.pid);
    put_field(outbox(), buffer_head(&a->question), buffer_length(&a->question));
    frame_end(outbox(), mark);
}

static void send_gone(uint32_t stream, uint32_t number)
{
    size_t mark = frame_begin(outbox(), EVENT, stream);
    put_text(outbox(), "gone");
    put_number(outbox(), number);
    frame_end(outbox(), mark);
}

static void forget(struct asking *a)
{
    pipe_close(&a->fd);
    buffer_free(&a->question);
    *a = (struct asking){.fd = -1};
}

static void lose(const struct stream *s, struct asking *a)
{
    if (a->is_known)
        send_gone(s->id, a->number);
    forget(a);
}

static struct asking *free_place(struct serving *v)
{
    for (int i = 0; i < MOST_ASKING; i++)
        if (v->all[i].fd < 0)
            return &v->all[i];
    return NULL;
}

static bool take_caller(struct stream *s, struct serving *v)
{
    struct asking *place = v->ready ? free_place(v) : NULL;
    if (place == NULL)
        return false;
    int fd = accept4(v->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        v->ready = errno != EAGAIN;
        return errno == EINTR || errno == ECONNABORTED;
    }
    *place = (struct asking){.number = ++v->last_number, .fd = fd, .ready = true};
    socklen_t size = sizeof place->who;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &place->who, &size) != 0) {
        forget(place);
        return true;
    }
    stream_watch(s, fd, (uint8_t)(place - v->all));
    return true;
}

/* A packet without a byte is no question, and cannot be told from the end. */
static bool has_ended(struct asking *a, ssize_t got)
{
    a->ready = got >= 0 || errno == EINTR;
    return got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR);
}

/* What it says next is not read, but that it is gone is seen. */
static bool look(struct stream *s, struct asking *a)
{
    char first;
    a->ready = false;
    ssize_t got = recv(a->fd, &first, 1, MSG_PEEK | MSG_DONTWAIT);
    if (got > 0 || !has_ended(a, got))
        return false;
    lose(s, a);
    return true;
}

static bool read_question(struct stream *s, struct asking *a)
{
    ssize_t got = recv(a->fd, buffer_room(&a->question, LONGEST_QUESTION), LONGEST_QUESTION, MSG_DONTWAIT);
    if (has_ended(a, got)) {
        lose(s, a);
        return true;
    }
    if (got < 0)
        return a->ready;
    buffer_grow(&a->question, (size_t)got);
    a->waits = true;
    a->is_told = false;
    return true;
}

static bool serve_one(struct stream *s, struct asking *a)
{
    if (a->waits && !a->is_told) {
        a->is_told = a->is_known = true;
        send_asked(s->id, a);
        return true;
    }
    if (!a->ready)
        return false;
    return a->waits ? look(s, a) : read_question(s, a);
}

static bool serving_pump(struct stream *s)
{
    struct serving *v = s->state;
    if (s->id == 0)
        return false;
    bool moved = take_caller(s, v);
    for (int i = 0; i < MOST_ASKING; i++)
        if (v->all[i].fd >= 0 && outbox_has_room())
            moved |= serve_one(s, &v->all[i]);
    return moved;
}

static void serving_ready(struct stream *s, uint8_t channel)
{
    struct serving *v = s->state;
    if (channel == EVENT_SOCKET)
        v->ready = true;
    else
        v->all[channel].ready = true;
}

static bool find_address(struct sockaddr_un *out)
{
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    return path_rooted(SOCKET, out->sun_path, sizeof out->sun_path);
}

static void serving_close(struct stream *s)
{
    struct serving *v = s->state;
    struct sockaddr_un address;
    /* Whoever is let go finds no way back. */
    if (v->fd >= 0 && find_address(&address))
        unlink(address.sun_path);
    pipe_close(&v->fd);
    for (int i = 0; i < MOST_ASKING; i++)
        forget(&v->all[i]);
    free(v);
}

static const struct stream_kind SERVING = {
    .is_tunnel = true,
    .pump = serving_pump,
    .ready = serving_ready,
    .close = serving_close,
};

/* -1 with errno set. Whoever runs in the guest may ask. */
static int open_socket(void)
{
    struct sockaddr_un address;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool is_there = fd >= 0 && find_address(&address) && make_parents(address.sun_path);
    if (is_there)
        unlink(address.sun_path);
    if (is_there && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && chmod(address.sun_path, 0666) == 0 &&
        listen(fd, MOST_ASKING) == 0)
        return fd;
    int error = errno;
    pipe_close(&fd);
    errno = error;
    return -1;
}

static void start_serving(uint32_t stream)
{
    struct serving *v = zeroed(sizeof *v);
    for (int i = 0; i < MOST_ASKING; i++)
        v->all[i].fd = -1;
    v->fd = open_socket();
    struct stream *s = v->fd >= 0 ? stream_new(stream, &SERVING, v) : NULL;
    if (s != NULL) {
        stream_watch(s, v->fd, EVENT_SOCKET);
        send_serving(stream);
        return;
    }
    if (v->fd < 0)
        send_errno(stream, "programs cannot be given a way to ask", errno);
    serving_close(&(struct stream){.state = v});
}

static void go_on_serving(struct stream *s, uint32_t stream)
{
    struct serving *v = s->state;
    stream_take(s, stream);
    for (int i = 0; i < MOST_ASKING; i++)
        v->all[i].is_told = false;
    send_serving(stream);
}

void do_serve(uint32_t stream, struct fields *f)
{
    (void)f;
    struct stream *s = stream_of_kind(&SERVING);
    if (s == NULL)
        start_serving(stream);
    else if (s->id == 0)
        go_on_serving(s, stream);
    else
        send_error(stream, "busy", "somebody answers programs already", 0);
}

static struct asking *find_waiting(struct serving *v, uint64_t number)
{
    for (int i = 0; i < MOST_ASKING; i++)
        if (v->all[i].fd >= 0 && v->all[i].number == number && v->all[i].waits)
            return &v->all[i];
    return NULL;
}

/* One that does not read what it asked for is let go. */
static bool answer(struct asking *a, struct field text)
{
    a->waits = false;
    a->ready = true;
    buffer_free(&a->question);
    return send(a->fd, text.bytes, text.length, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)text.length;
}

void do_answer(uint32_t stream, struct fields *f)
{
    uint64_t number;
    bool is_read = field_number(field_take(f), &number);
    struct field text = field_take(f);
    struct stream *s = stream_of_kind(&SERVING);
    struct asking *a = is_read && s != NULL ? find_waiting(s->state, number) : NULL;
    if (!is_read)
        send_invalid(stream, "the number of a program is needed");
    else if (a == NULL)
        send_error(stream, "not-found", "no such program waits for an answer", 0);
    else if (!answer(a, text)) {
        send_errno(stream, "the program does not take its answer", errno);
        forget(a);
    } else
        send_done(stream);
}

bool ask_is(const struct stream *s)
{
    return s->kind == &SERVING;
}

static void end_serving(struct stream *s)
{
    if (s->id != 0)
        send_error(s->id, "reset", "nobody answers programs before the machine is frozen", ECONNRESET);
    stream_close(s);
}

void asks_reset(void)
{
    streams_each(&SERVING, end_serving);
}
