#include "process.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "answer.h"
#include "cgroup.h"
#include "clock.h"
#include "descent.h"
#include "launch.h"
#include "memory.h"
#include "pipes.h"
#include "stream.h"

/* How a program lives.
 *
 *   launched --> runs --> ended ----> told
 *
 * It runs with three pipes. What it writes is read straight into DATA frames as far as credit goes; what it is sent
 * waits here until it reads. SIGCHLD tells its end. What is in its pipes then is what it wrote, and is still sent, at
 * the pace of the credit; EOF for both, and the REPLY, come after the last of it. Its children may go on writing:
 * nobody waits.
 *
 * It is the leader of a session and of a process group, which is what a signal goes to. SIGKILL, and the
 * end of the client, reach all that it started: where it is contained, by a control group that nothing can leave; else
 * as far as that descends from it still. */

struct output {
    int fd;
    bool ready;
    /* Once the process has ended: what it left in the pipe. */
    size_t left;
};

struct process {
    pid_t pid;
    bool ended;
    int status;
    int64_t started_ns;
    int64_t duration_ns;
    struct output output[PIPES];
    /* NULL where it was not asked for, or cannot be had. */
    struct cgroup *cgroup;
    int input;
    bool input_ready;
    bool input_ended;
    struct buffer input_held;
};

static void end_output(struct stream *s, struct process *e, uint8_t channel)
{
    pipe_close(&e->output[channel].fd);
    send_eof(s->id, channel);
}

static void note_read(struct stream *s, struct process *e, uint8_t channel, long got)
{
    struct output *o = &e->output[channel];
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
        end_output(s, e, channel);
        return;
    }
    if (got < 0) {
        o->ready = errno == EINTR;
        /* The process is gone and someone else emptied the pipe. */
        if (e->ended && !o->ready)
            end_output(s, e, channel);
        return;
    }
    if (e->ended && (o->left -= (size_t)got) == 0)
        end_output(s, e, channel);
}

static bool pump_output(struct stream *s, struct process *e, uint8_t channel)
{
    struct output *o = &e->output[channel];
    if (o->fd < 0 || !o->ready)
        return false;
    size_t limit = stream_allowance(s, channel);
    if (e->ended && limit > o->left)
        limit = o->left;
    if (limit == 0)
        return false;
    note_read(s, e, channel, stream_send_from(s, channel, o->fd, limit));
    return true;
}

/* A process that closed its input takes nothing more: what the host sends is thrown away, so that it is not held up. */
static void discard_input(struct stream *s, struct process *e)
{
    pipe_close(&e->input);
    stream_grant(s, buffer_length(&e->input_held));
    buffer_free(&e->input_held);
}

static bool pump_input(struct stream *s, struct process *e)
{
    size_t held = buffer_length(&e->input_held);
    if (e->input < 0 || held == 0 || !e->input_ready)
        return false;
    ssize_t put = write(e->input, buffer_head(&e->input_held), held);
    if (put < 0 && (errno == EAGAIN || errno == EINTR)) {
        e->input_ready = errno == EINTR;
        return e->input_ready;
    }
    if (put < 0) {
        discard_input(s, e);
        return true;
    }
    buffer_take(&e->input_held, (size_t)put);
    stream_grant(s, (size_t)put);
    if (e->input_ended && buffer_length(&e->input_held) == 0)
        pipe_close(&e->input);
    return true;
}

static void finish(struct stream *s, struct process *e)
{
    bool exited = WIFEXITED(e->status);
    size_t mark = frame_begin(outbox(), REPLY, s->id);
    put_text(outbox(), exited ? "exit" : "signal");
    put_number(outbox(), exited ? WEXITSTATUS(e->status) : WTERMSIG(e->status));
    put_number(outbox(), e->duration_ns);
    end_reply(s->id, mark);
    stream_close(s);
}

static bool process_pump(struct stream *s)
{
    struct process *e = s->state;
    bool moved = pump_output(s, e, CHANNEL_STDOUT);
    moved |= pump_output(s, e, CHANNEL_STDERR);
    moved |= pump_input(s, e);
    if (!e->ended || e->output[CHANNEL_STDOUT].fd >= 0 || e->output[CHANNEL_STDERR].fd >= 0)
        return moved;
    finish(s, e);
    return true;
}

static void process_data(struct stream *s, const uint8_t *bytes, size_t length)
{
    struct process *e = s->state;
    if (e->input < 0 || e->input_ended)
        stream_grant(s, length);
    else
        buffer_add(&e->input_held, bytes, length);
}

static void process_eof(struct stream *s)
{
    struct process *e = s->state;
    e->input_ended = true;
    if (buffer_length(&e->input_held) == 0)
        pipe_close(&e->input);
}

static void process_ready(struct stream *s, uint8_t channel)
{
    struct process *e = s->state;
    if (channel == CHANNEL_CONTENT)
        e->input_ready = true;
    else
        e->output[channel].ready = true;
}

static bool kill_all(struct process *e)
{
    if (e->cgroup != NULL)
        cgroup_kill(e->cgroup);
    else
        descent_kill(e->pid);
    return kill(-e->pid, SIGKILL) == 0 || errno == ESRCH;
}

static void process_close(struct stream *s)
{
    struct process *e = s->state;
    if (!e->ended)
        kill_all(e);
    cgroup_leave(e->cgroup);
    pipe_close(&e->input);
    pipe_close(&e->output[CHANNEL_STDOUT].fd);
    pipe_close(&e->output[CHANNEL_STDERR].fd);
    buffer_free(&e->input_held);
    free(e);
}

/* What is in the pipe at this moment is all the process wrote; what comes later is from its children, who may never
 * stop. */
static void process_ended(struct stream *s, int status)
{
    struct process *e = s->state;
    e->ended = true;
    e->status = status;
    e->duration_ns = monotonic_ns() - e->started_ns;
    for (uint8_t channel = CHANNEL_STDOUT; channel <= CHANNEL_STDERR; channel++) {
        struct output *o = &e->output[channel];
        int left = 0;
        if (o->fd < 0)
            continue;
        ioctl(o->fd, FIONREAD, &left);
        o->left = (size_t)left;
        o->ready = true;
        if (left == 0)
            end_output(s, e, channel);
    }
}

static const struct stream_kind PROCESS = {
    .channel = CHANNEL_CONTENT,
    .data = process_data,
    .eof = process_eof,
    .pump = process_pump,
    .ready = process_ready,
    .child_ended = process_ended,
    .close = process_close,
};

static struct process *process_new(const struct pipes *p)
{
    struct process *e = zeroed(sizeof *e);
    e->ended = true;
    e->input = p->ours[CHANNEL_CONTENT];
    e->output[CHANNEL_STDOUT].fd = p->ours[CHANNEL_STDOUT];
    e->output[CHANNEL_STDERR].fd = p->ours[CHANNEL_STDERR];
    return e;
}

static void watch_all(struct stream *s, const struct pipes *p)
{
    for (uint8_t channel = 0; channel < PIPES; channel++)
        if (p->ours[channel] >= 0)
            stream_watch(s, p->ours[channel], channel);
}

static void send_started(uint32_t stream, pid_t pid)
{
    size_t mark = frame_begin(outbox(), EVENT, stream);
    put_text(outbox(), "started");
    put_number(outbox(), pid);
    frame_end(outbox(), mark);
}

static void send_too_long(uint32_t stream, const struct command *c)
{
    char why[256];
    command_explain_length(c, why, sizeof why);
    send_error(stream, "too-long", why, E2BIG);
}

static void send_failure(uint32_t stream, const struct command *c, const struct launch_failure *failure)
{
    bool missing = failure->error == ENOENT || failure->error == ENOTDIR;
    if (failure->step == LAUNCH_CWD)
        send_error(stream, "no-directory", "the working directory cannot be entered", failure->error);
    else if (failure->step == LAUNCH_PROGRAM && failure->error == E2BIG)
        send_too_long(stream, c);
    else if (failure->step == LAUNCH_PROGRAM)
        send_error(stream, missing ? "not-found" : "not-executable", strerror(failure->error), failure->error);
    else
        send_errno(stream, "the process could not be made", failure->error);
}

static const char *home_of(const struct command *c)
{
    const char *home = c->has_account ? c->account.home : getenv("HOME");
    return home != NULL ? home : "/root";
}

static pid_t start(const struct command *c, const struct pipes *p, const struct cgroup *g,
                   struct launch_failure *failure)
{
    struct launch l = {
        .argv = c->argv,
        .env = c->env,
        .cwd = c->cwd,
        .home = home_of(c),
        .account = c->has_account ? &c->account : NULL,
        .stdio = {p->theirs[0], p->theirs[1], p->theirs[2]},
        .cgroup_door = cgroup_door(g),
    };
    return launch_start(&l, failure);
}

static void start_on(struct stream *s, struct process *e, const struct command *c, const struct pipes *p)
{
    struct launch_failure failure;
    e->cgroup = c->is_contained ? cgroup_make() : NULL;
    e->started_ns = monotonic_ns();
    e->ended = false;
    e->pid = s->child = start(c, p, e->cgroup, &failure);
    if (e->pid > 0) {
        watch_all(s, p);
        send_started(s->id, e->pid);
        return;
    }
    e->ended = true;
    send_failure(s->id, c, &failure);
    stream_close(s);
}

/* The slot comes first: a process that has no place to answer to is not started. */
void process_start(uint32_t stream, const struct command *c)
{
    struct pipes p;
    if (!pipes_open(&p, c->wants_stdin)) {
        send_errno(stream, "no pipe could be made", errno);
        pipes_close(p.ours);
    } else {
        struct process *e = process_new(&p);
        struct stream *s = stream_new(stream, &PROCESS, e);
        if (s != NULL)
            start_on(s, e, c, &p);
        else
            process_close(&(struct stream){.state = e});
    }
    pipes_close(p.theirs);
}

bool process_is(const struct stream *s)
{
    return s->kind == &PROCESS;
}

/* After its end the number may belong to another process. */
bool process_signal(struct stream *s, int number)
{
    struct process *e = s->state;
    if (e->ended)
        return true;
    if (number == SIGKILL)
        return kill_all(e);
    return kill(-e->pid, number) == 0 || errno == ESRCH;
}

bool processes_are_open(void)
{
    return streams_have(&PROCESS);
}
