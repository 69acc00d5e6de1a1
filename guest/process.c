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
#include "limit.h"
#include "memory.h"
#include "pipes.h"
#include "stream.h"
#include "terminal.h"
#include "version.h"

/* How a program lives.
 *
 *   launched --> runs --> ended ----> told
 *
 * It runs with three pipes. What it writes is read straight into DATA frames as far as credit goes; what it is sent
 * waits here until it reads. SIGCHLD tells its end. What is in its pipes then is what it wrote, and is still sent, at
 * the pace of the credit; EOF for both, and the REPLY, come after the last of it. Its children may go on writing:
 * nobody waits.
 *
 * With a terminal there are no pipes: what it shows goes out as standard output, and there is no standard error.
 *
 * One that its client has left waits for another: what it writes stays in its pipes, which make it wait when they are
 * full, and its end is told to who takes it.
 *
 * It is the leader of a session and of a process group, which is what a signal goes to. SIGKILL, and the
 * end of the client, reach all that it started: where it is contained, by a control group that nothing can leave; else
 * as far as that descends from it still. */

/* Beside the channels: the processor time may be used up. */
enum { EVENT_CPU = CHANNELS };

/* Of a command line so much is remembered: all that can be left are listed in one frame. */
enum { LONGEST_NAME = 128 };

struct output {
    int fd;
    bool ready;
    /* Once the process has ended: what it left in the pipe; of a terminal, more than it can have left. */
    size_t left;
};

struct process {
    pid_t pid;
    bool ended;
    int status;
    int64_t started_ns;
    int64_t duration_ns;
    struct usage used;
    /* Of what was allowed: "memory", "cpu", or nothing. */
    const char *exceeded;
    struct limits limits;
    int cpu_timer;
    struct output output[PIPES];
    /* NULL where it was not asked for, or cannot be had. */
    struct cgroup *cgroup;
    int input;
    bool input_ready;
    bool input_ended;
    struct buffer input_held;
    bool has_terminal;
    /* The last line that was typed has no end yet. */
    bool is_mid_line;
    /* How often the key for the end of input must still be typed. */
    int ends_due;
    bool wants_stdin;
    /* The beginning of its command line, as fields. */
    size_t argc;
    struct buffer argv;
};

static void end_output(struct stream *s, struct process *e, uint8_t channel)
{
    pipe_close(&e->output[channel].fd);
    send_eof(s->id, channel);
}

/* A terminal that nobody has open says EIO until somebody opens it again. Most programs close theirs before they end,
 * and one whose terminal we closed then would end by SIGHUP. */
static bool may_say_more(const struct process *e, int error)
{
    return error == EAGAIN || error == EINTR || (error == EIO && e->has_terminal);
}

static void note_read(struct stream *s, struct process *e, uint8_t channel, long got)
{
    struct output *o = &e->output[channel];
    if (got == 0 || (got < 0 && !may_say_more(e, errno))) {
        end_output(s, e, channel);
        return;
    }
    if (got < 0) {
        o->ready = errno == EINTR;
        /* The process is gone, and this is all; or someone else emptied the pipe. */
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
    if (e->ended && o->left == 0) {
        end_output(s, e, channel);
        return true;
    }
    size_t limit = stream_allowance(s, channel);
    if (e->ended && limit > o->left)
        limit = o->left;
    if (limit == 0)
        return false;
    note_read(s, e, channel, stream_send_from(s, channel, o->fd, limit));
    return true;
}

/* A process that closed its input takes nothing more: what the host sends is thrown away, so that it is not held up. A
 * terminal may be opened again. */
static void discard_input(struct stream *s, struct process *e)
{
    if (!e->has_terminal)
        pipe_close(&e->input);
    stream_grant(s, buffer_length(&e->input_held));
    buffer_free(&e->input_held);
}

/* Whether a write that failed may be tried again, at once or when the input is ready. */
static bool must_wait(struct process *e)
{
    e->input_ready = errno == EINTR;
    return errno == EAGAIN || errno == EINTR;
}

/* All of the input was taken, and the program reads its end. */
static bool end_input(struct process *e)
{
    while (e->ends_due > 0) {
        if (!terminal_type_end(e->input) && must_wait(e))
            return e->input_ready;
        e->ends_due--;
    }
    pipe_close(&e->input);
    return true;
}

static bool pump_input(struct stream *s, struct process *e)
{
    size_t held = buffer_length(&e->input_held);
    if (e->input < 0 || !e->input_ready || (held == 0 && !e->input_ended))
        return false;
    if (held == 0)
        return end_input(e);
    ssize_t put = write(e->input, buffer_head(&e->input_held), held);
    if (put < 0 && must_wait(e))
        return e->input_ready;
    if (put < 0) {
        discard_input(s, e);
        return true;
    }
    buffer_take(&e->input_held, (size_t)put);
    stream_grant(s, (size_t)put);
    return true;
}

static void finish(struct stream *s, struct process *e)
{
    bool exited = WIFEXITED(e->status);
    size_t mark = frame_begin(outbox(), REPLY, s->id);
    put_text(outbox(), exited ? "exit" : "signal");
    put_number(outbox(), exited ? WEXITSTATUS(e->status) : WTERMSIG(e->status));
    put_number(outbox(), e->duration_ns);
#if PROTOCOL >= 4
    put_number(outbox(), e->used.cpu_ns);
    put_number(outbox(), e->used.peak_bytes);
    put_text(outbox(), e->exceeded);
#endif
    end_reply(s->id, mark);
    stream_close(s);
}

static bool process_pump(struct stream *s)
{
    struct process *e = s->state;
    if (s->id == 0)
        return pump_input(s, e);
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
    if (length > 0)
        e->is_mid_line = bytes[length - 1] != '\n' && bytes[length - 1] != '\r';
}

static void process_eof(struct stream *s)
{
    struct process *e = s->state;
    if (e->input_ended)
        return;
    e->input_ended = true;
    /* In the middle of a line the first one only ends that. */
    e->ends_due = e->has_terminal ? 1 + e->is_mid_line : 0;
    /* It is not waited for that a full pipe has room. */
    if (e->input >= 0 && e->ends_due == 0 && buffer_length(&e->input_held) == 0)
        end_input(e);
}

static bool kill_all(struct process *e)
{
    if (e->cgroup != NULL)
        cgroup_kill(e->cgroup);
    else
        descent_kill(e->pid);
    return kill(-e->pid, SIGKILL) == 0 || errno == ESRCH;
}

static void check_cpu(struct process *e)
{
    if (e->ended || e->exceeded[0] != 0 || !limits_cpu_is_over(&e->limits, e->cgroup, e->cpu_timer))
        return;
    e->exceeded = "cpu";
    kill_all(e);
}

static void process_ready(struct stream *s, uint8_t channel)
{
    struct process *e = s->state;
    if (channel == EVENT_CPU)
        check_cpu(e);
    else if (channel == CHANNEL_CONTENT)
        e->input_ready = true;
    else
        e->output[channel].ready = true;
}

static void process_close(struct stream *s)
{
    struct process *e = s->state;
    if (!e->ended)
        kill_all(e);
    cgroup_leave(e->cgroup);
    pipe_close(&e->cpu_timer);
    pipe_close(&e->input);
    pipe_close(&e->output[CHANNEL_STDOUT].fd);
    pipe_close(&e->output[CHANNEL_STDERR].fd);
    buffer_free(&e->input_held);
    buffer_free(&e->argv);
    free(e);
}

static size_t left_in(const struct process *e, const struct output *o)
{
    int left = 0;
    if (e->has_terminal)
        return TERMINAL_HOLDS;
    ioctl(o->fd, FIONREAD, &left);
    return (size_t)left;
}

static void note_usage(struct process *e, const struct rusage *used)
{
    e->used = usage_of_child(used);
    if (!limits_are_set(&e->limits))
        return;
    e->used = usage_of_group(e->cgroup, e->used);
    if (e->exceeded[0] == 0 && limits_memory_is_over(e->cgroup)) {
        e->exceeded = "memory";
        /* The kernel ends them one after the other. Who is moved out of the group before its turn would run on. */
        cgroup_kill(e->cgroup);
    }
}

/* What is in the pipe at this moment is all the process wrote; what comes later is from its children, who may never
 * stop. */
static void process_ended(struct stream *s, int status, const struct rusage *used)
{
    struct process *e = s->state;
    note_usage(e, used);
    e->ended = true;
    e->status = status;
    e->duration_ns = monotonic_ns() - e->started_ns;
    for (uint8_t channel = CHANNEL_STDOUT; channel <= CHANNEL_STDERR; channel++) {
        struct output *o = &e->output[channel];
        if (o->fd < 0)
            continue;
        o->left = left_in(e, o);
        o->ready = true;
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

static void remember_name(struct process *e, const struct command *c)
{
    for (; e->argc < c->argc && buffer_length(&e->argv) < LONGEST_NAME; e->argc++)
        put_field(&e->argv, c->argv[e->argc], strnlen(c->argv[e->argc], LONGEST_NAME - buffer_length(&e->argv)));
}

static struct process *process_new(const struct command *c, const struct pipes *p)
{
    struct process *e = zeroed(sizeof *e);
    remember_name(e, c);
    e->wants_stdin = c->wants_stdin;
    e->has_terminal = c->wants_terminal;
    e->limits = c->limits;
    e->exceeded = "";
    e->cpu_timer = -1;
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
        .has_terminal = c->wants_terminal,
        .cgroup_door = cgroup_door(g),
    };
    return launch_start(&l, failure);
}

/* False with errno set. A group that only helps to end the program may be missing; one that is to limit it, not. */
static bool hold(struct stream *s, struct process *e, const struct command *c)
{
    bool is_limited = limits_are_set(&c->limits);
    e->cgroup = c->is_contained || is_limited ? cgroup_make() : NULL;
    if (!is_limited)
        return true;
    if (e->cgroup == NULL || !limits_apply(&c->limits, e->cgroup))
        return false;
    if (c->limits.cpu_ms == 0)
        return true;
    e->cpu_timer = limits_watch_cpu(&c->limits);
    if (e->cpu_timer >= 0)
        stream_watch(s, e->cpu_timer, EVENT_CPU);
    return e->cpu_timer >= 0;
}

static void start_on(struct stream *s, struct process *e, const struct command *c, const struct pipes *p)
{
    struct launch_failure failure;
    if (!hold(s, e, c)) {
        send_error(s->id, "unsupported", "this machine cannot limit what one program uses", errno);
        stream_close(s);
        return;
    }
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

static bool open_ends(struct pipes *p, const struct command *c)
{
    if (c->wants_terminal)
        return terminal_open(p, &c->window, c->has_account ? &c->account : NULL);
    return pipes_open(p, c->wants_stdin);
}

/* The slot comes first: a process that has no place to answer to is not started. */
void process_start(uint32_t stream, const struct command *c)
{
    struct pipes p;
    if (!open_ends(&p, c)) {
        send_errno(stream, c->wants_terminal ? "no terminal could be made" : "no pipe could be made", errno);
        pipes_close(p.ours);
    } else {
        struct process *e = process_new(c, &p);
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

void process_put(const struct stream *s)
{
    const struct process *e = s->state;
    put_number(outbox(), (int64_t)s->number);
    put_number(outbox(), e->pid);
    put_text(outbox(), e->has_terminal ? "terminal" : e->wants_stdin ? "stdin" : "");
    put_number(outbox(), (int64_t)e->argc);
    buffer_add(outbox(), buffer_head(&e->argv), buffer_length(&e->argv));
}

void process_take(struct stream *s, uint32_t id)
{
    const struct process *e = s->state;
    stream_take(s, id);
    send_started(id, e->pid);
}

bool process_has_terminal(const struct stream *s)
{
    const struct process *e = s->state;
    return e->has_terminal;
}

bool process_resize(struct stream *s, const struct winsize *window)
{
    const struct process *e = s->state;
    int ours = e->output[CHANNEL_STDOUT].fd;
    return ours < 0 || terminal_resize(ours, window);
}

bool processes_are_open(void)
{
    return stream_of_kind(&PROCESS) != NULL;
}

void processes_each(void (*act)(struct stream *s))
{
    streams_each(&PROCESS, act);
}
