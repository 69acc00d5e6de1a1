#include "exec.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "answer.h"
#include "clock.h"
#include "command.h"
#include "fatal.h"
#include "launch.h"
#include "operation.h"
#include "stream.h"

struct output {
    int fd;
    bool ready;
    /* Once the process has ended: what it left in the pipe. */
    size_t left;
};

struct exec {
    pid_t pid;
    bool ended;
    int status;
    int64_t started_ns;
    int64_t duration_ns;
    struct output output[CHANNELS];
    int input;
    bool input_ready;
    bool input_ended;
    struct buffer input_held;
};

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void end_output(struct stream *s, struct exec *e, uint8_t channel)
{
    close_fd(&e->output[channel].fd);
    send_eof(s->id, channel);
}

static void note_read(struct stream *s, struct exec *e, uint8_t channel, long got)
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

static bool pump_output(struct stream *s, struct exec *e, uint8_t channel)
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
static void discard_input(struct stream *s, struct exec *e)
{
    close_fd(&e->input);
    stream_grant(s, buffer_length(&e->input_held));
    buffer_free(&e->input_held);
}

static bool pump_input(struct stream *s, struct exec *e)
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
        close_fd(&e->input);
    return true;
}

static void finish(struct stream *s, struct exec *e)
{
    bool exited = WIFEXITED(e->status);
    size_t mark = frame_begin(outbox(), REPLY, s->id);
    put_text(outbox(), exited ? "exit" : "signal");
    put_number(outbox(), exited ? WEXITSTATUS(e->status) : WTERMSIG(e->status));
    put_number(outbox(), e->duration_ns);
    end_reply(s->id, mark);
    stream_close(s);
}

static bool exec_pump(struct stream *s)
{
    struct exec *e = s->state;
    bool moved = pump_output(s, e, CHANNEL_STDOUT);
    moved |= pump_output(s, e, CHANNEL_STDERR);
    moved |= pump_input(s, e);
    if (!e->ended || e->output[CHANNEL_STDOUT].fd >= 0 || e->output[CHANNEL_STDERR].fd >= 0)
        return moved;
    finish(s, e);
    return true;
}

static void exec_data(struct stream *s, const uint8_t *bytes, size_t length)
{
    struct exec *e = s->state;
    if (e->input < 0 || e->input_ended)
        stream_grant(s, length);
    else
        buffer_add(&e->input_held, bytes, length);
}

static void exec_eof(struct stream *s)
{
    struct exec *e = s->state;
    e->input_ended = true;
    if (buffer_length(&e->input_held) == 0)
        close_fd(&e->input);
}

static void exec_ready(struct stream *s, uint8_t channel)
{
    struct exec *e = s->state;
    if (channel == CHANNEL_CONTENT)
        e->input_ready = true;
    else
        e->output[channel].ready = true;
}

static void exec_close(struct stream *s)
{
    struct exec *e = s->state;
    if (!e->ended)
        kill(-e->pid, SIGKILL);
    close_fd(&e->input);
    close_fd(&e->output[CHANNEL_STDOUT].fd);
    close_fd(&e->output[CHANNEL_STDERR].fd);
    buffer_free(&e->input_held);
    free(e);
}

static const struct stream_kind EXEC = {exec_data, exec_eof, exec_pump, exec_ready, exec_close};

struct pipes {
    int theirs[3];
    int ours[3];
};

static void pipes_close(int fds[3])
{
    for (int i = 0; i < 3; i++)
        close_fd(&fds[i]);
}

static bool make_pipe(struct pipes *p, int channel)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return false;
    bool inwards = channel == CHANNEL_CONTENT;
    p->theirs[channel] = ends[inwards ? 0 : 1];
    p->ours[channel] = ends[inwards ? 1 : 0];
    return fcntl(p->ours[channel], F_SETFL, O_NONBLOCK) == 0;
}

static bool pipes_open(struct pipes *p, bool wants_stdin)
{
    *p = (struct pipes){{-1, -1, -1}, {-1, -1, -1}};
    if (!wants_stdin)
        p->theirs[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    bool input = wants_stdin ? make_pipe(p, CHANNEL_CONTENT) : p->theirs[0] >= 0;
    return input && make_pipe(p, CHANNEL_STDOUT) && make_pipe(p, CHANNEL_STDERR);
}

static struct exec *exec_new(pid_t pid, const struct pipes *p)
{
    struct exec *e = calloc(1, sizeof *e);
    if (e == NULL)
        fatal("out of memory");
    e->pid = pid;
    e->input = p->ours[CHANNEL_CONTENT];
    e->output[CHANNEL_STDOUT].fd = p->ours[CHANNEL_STDOUT];
    e->output[CHANNEL_STDERR].fd = p->ours[CHANNEL_STDERR];
    return e;
}

static void watch_all(struct stream *s, const struct pipes *p)
{
    for (uint8_t channel = 0; channel < CHANNELS; channel++)
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

static void send_failure(uint32_t stream, const struct launch_failure *failure)
{
    bool missing = failure->error == ENOENT || failure->error == ENOTDIR;
    if (failure->step == LAUNCH_CWD)
        send_error(stream, "no-directory", "the working directory cannot be entered", failure->error);
    else if (failure->step == LAUNCH_PROGRAM && failure->error == E2BIG)
        send_errno(stream, "the arguments are too long", failure->error);
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

static pid_t start(const struct command *c, const struct pipes *p, struct launch_failure *failure)
{
    struct launch l = {
        .argv = c->argv,
        .env = c->env,
        .cwd = c->cwd,
        .home = home_of(c),
        .account = c->has_account ? &c->account : NULL,
        .stdio = {p->theirs[0], p->theirs[1], p->theirs[2]},
    };
    return launch_start(&l, failure);
}

/* The slot comes first: a process that has no place to answer to is not started. */
static void run(uint32_t stream, const struct command *c)
{
    struct pipes p;
    if (!pipes_open(&p, c->wants_stdin)) {
        send_errno(stream, "no pipe could be made", errno);
        pipes_close(p.theirs);
        pipes_close(p.ours);
        return;
    }
    struct exec *e = exec_new(0, &p);
    struct stream *s = stream_new(stream, &EXEC, e);
    struct launch_failure failure = {0};
    e->started_ns = monotonic_ns();
    e->pid = s == NULL ? -1 : start(c, &p, &failure);
    pipes_close(p.theirs);
    if (e->pid > 0) {
        watch_all(s, &p);
        send_started(stream, e->pid);
        return;
    }
    e->ended = true;
    if (s == NULL) {
        exec_close(&(struct stream){.state = e});
    } else {
        send_failure(stream, &failure);
        stream_close(s);
    }
}

void do_exec(uint32_t stream, struct fields *f)
{
    struct command c;
    switch (command_read(&c, f)) {
    case COMMAND_READ:
        run(stream, &c);
        break;
    case COMMAND_BAD_OPTION:
        send_error(stream, "unsupported", "an option this agent does not know", 0);
        break;
    case COMMAND_BAD_FIELD:
        send_invalid(stream, "a command that cannot be read");
        break;
    case COMMAND_NO_USER:
        send_error(stream, "no-user", "no such user", 0);
        break;
    }
    command_free(&c);
}

/* After its end the number may belong to another process. */
static bool signal_group(const struct exec *e, int number)
{
    return e->ended || kill(-e->pid, number) == 0 || errno == ESRCH;
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
    else if (s->kind != &EXEC)
        cancel(stream, s);
    else if (!signal_group(s->state, (int)number))
        send_errno(stream, "the signal could not be sent", errno);
    else
        send_done(stream);
}

static bool has_pid(const struct stream *s, int pid)
{
    const struct exec *e = s->state;
    return e->pid == pid && !e->ended;
}

static bool any(const struct stream *s, int unused)
{
    (void)s;
    (void)unused;
    return true;
}

bool exec_is_open(void)
{
    return stream_search(&EXEC, any, 0) != NULL;
}

/* What is in the pipe at this moment is all the process wrote; what comes later is from its children, who may never
 * stop. */
static void note_end(struct stream *s, int status)
{
    struct exec *e = s->state;
    e->ended = true;
    e->status = status;
    e->duration_ns = monotonic_ns() - e->started_ns;
    for (uint8_t channel = CHANNEL_STDOUT; channel < CHANNELS; channel++) {
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

void exec_reap(void)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        struct stream *s = stream_search(&EXEC, has_pid, pid);
        if (s != NULL)
            note_end(s, status);
    }
}
