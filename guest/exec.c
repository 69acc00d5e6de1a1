/* EXEC, KILL and RESIZE. */
#include "exec.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "answer.h"
#include "command.h"
#include "memory.h"
#include "operation.h"
#include "process.h"
#include "stream.h"

/* A command that is longer than a frame comes in two parts: the request, and its argv and env as DATA, which are kept
 * until their end. Linux takes 6 MiB at most, and a field adds 4 bytes to each string of it. */
enum { LONGEST_LISTS = 8 * 1024 * 1024 };

struct pending {
    struct command command;
    struct buffer lists;
};

static void send_unread(uint32_t stream, enum command_read outcome)
{
    if (outcome == COMMAND_BAD_OPTION)
        send_error(stream, "unsupported", "an option this agent does not know", 0);
    else if (outcome == COMMAND_NO_USER)
        send_error(stream, "no-user", "no such user", 0);
    else
        send_invalid(stream, "a command that cannot be read");
}

static void run(uint32_t stream, struct command *c, struct fields *lists)
{
    enum command_read outcome = command_read_lists(c, lists);
    if (outcome == COMMAND_READ)
        process_start(stream, c);
    else
        send_unread(stream, outcome);
    command_free(c);
}

static void pending_data(struct stream *s, const uint8_t *bytes, size_t length)
{
    struct pending *p = s->state;
    buffer_add(&p->lists, bytes, length);
    stream_grant(s, length);
    if (buffer_length(&p->lists) <= LONGEST_LISTS)
        return;
    send_error(s->id, "too-long", "arguments and environment have more than 8 MiB, Linux takes 6 MiB at most", E2BIG);
    stream_close(s);
}

/* The number of the stream is free before the program takes it. */
static void pending_eof(struct stream *s)
{
    struct pending p = *(struct pending *)s->state;
    struct fields lists;
    uint32_t stream = s->id;
    *(struct pending *)s->state = (struct pending){0};
    stream_close(s);
    if (fields_open(&lists, buffer_head(&p.lists), buffer_length(&p.lists)))
        run(stream, &p.command, &lists);
    else
        send_unread(stream, COMMAND_BAD_FIELD);
    buffer_free(&p.lists);
}

static void pending_close(struct stream *s)
{
    struct pending *p = s->state;
    buffer_free(&p->lists);
    free(p);
}

static const struct stream_kind PENDING = {
    .channel = CHANNEL_ARGUMENTS,
    .data = pending_data,
    .eof = pending_eof,
    .close = pending_close,
};

static void wait_for_lists(uint32_t stream, const struct command *c)
{
    struct pending *p = zeroed(sizeof *p);
    p->command = *c;
    if (stream_new(stream, &PENDING, p) == NULL)
        pending_close(&(struct stream){.state = p});
}

void do_exec(uint32_t stream, struct fields *f)
{
    struct command c;
    enum command_read outcome = command_read_head(&c, f);
    if (outcome != COMMAND_READ)
        send_unread(stream, outcome);
    else if (!c.lists_follow)
        run(stream, &c, f);
    else if (f->count == 0)
        wait_for_lists(stream, &c);
    else
        send_unread(stream, COMMAND_BAD_FIELD);
}

static void cancel(uint32_t stream, struct stream *s)
{
    send_error(s->id, "cancelled", "the host gave the request up", 0);
    stream_close(s);
    send_done(stream);
}

void do_kill(uint32_t stream, struct fields *f)
{
    uint64_t target, number;
    if (!field_number(field_take(f), &target) || !field_number(field_take(f), &number) || number < 1 || number > 64) {
        send_invalid(stream, "a stream and a signal number are needed");
        return;
    }
    struct stream *s = target <= UINT32_MAX ? stream_find((uint32_t)target) : NULL;
    if (s == NULL)
        send_error(stream, "not-found", "nothing is open on that stream", 0);
    else if (!process_is(s))
        cancel(stream, s);
    else if (!process_signal(s, (int)number))
        send_errno(stream, "the signal could not be sent", errno);
    else
        send_done(stream);
}

void do_resize(uint32_t stream, struct fields *f)
{
    uint64_t target, rows, columns;
    struct winsize window;
    bool is_read = field_number(field_take(f), &target) && field_number(field_take(f), &rows) &&
                   field_number(field_take(f), &columns) && command_read_window(rows, columns, &window);
    struct stream *s = is_read && target <= UINT32_MAX ? stream_find((uint32_t)target) : NULL;
    if (!is_read)
        send_invalid(stream, "a stream, rows and columns are needed, 1 to 65535 of each");
    else if (s == NULL || !process_is(s))
        send_error(stream, "not-found", "no program is open on that stream", 0);
    else if (!process_has_terminal(s))
        send_invalid(stream, "the program has no terminal");
    else if (!process_resize(s, &window))
        send_errno(stream, "the terminal could not be given that size", errno);
    else
        send_done(stream);
}

bool exec_is_open(void)
{
    return processes_are_open() || stream_of_kind(&PENDING) != NULL;
}
