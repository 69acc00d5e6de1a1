#include "notify.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "answer.h"
#include "errors.h"
#include "fatal.h"
#include "memory.h"
#include "operation.h"
#include "path.h"
#include "stream.h"

enum {
    MOST_WATCHERS = 256,
    /* The sockets of ended programs are counted too: each is looked at, and no request may take long. */
    MOST_NAMES = 4096,
    MOST_EVENTS = 64,
    LONGEST_LIMIT_MS = 3600000,
    /* Small enough for the evidence and the names of all watchers to fit into one frame. */
    EVIDENCE_SIZE = 512,
    GENERATION_SIZE = 256,
};

enum { CHANNEL_ANSWERS = 0, CHANNEL_LIMIT = 1 };

static const char FOLDER[] = "/run/vmfork/watchers";

struct watcher {
    char name[NAME_MAX + 1];
    /* Connected to the watcher: the kernel refuses what others send to it, so nobody answers for another, and what a
     * watcher sends beyond its answer fills no queue but its own. -1 once nothing more is expected. */
    int fd;
    /* NULL as long as there is none, and for ever for a program that ended. */
    const char *outcome;
    char evidence[EVIDENCE_SIZE];
};

struct notify {
    char generation[GENERATION_SIZE];
    /* An epoll of the watchers' sockets, which are more than a stream has channels. */
    int answers;
    int limit;
    bool has_answers;
    bool limit_is_over;
    size_t count;
    size_t silent;
    struct watcher watchers[MOST_WATCHERS];
};

void watchers_make(void)
{
    if (!make_folders(FOLDER) || chmod(FOLDER, 01777) != 0)
        complain("cannot make", FOLDER, errno);
}

static bool is_watcher(const struct sockaddr_un *address)
{
    struct stat st;
    if (lstat(address->sun_path, &st) != 0)
        return false;
    errno = ENOTSOCK;
    return S_ISSOCK(st.st_mode);
}

static bool find_address(const char *name, struct sockaddr_un *out)
{
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    char path[sizeof FOLDER + 1 + NAME_MAX];
    snprintf(path, sizeof path, "%s/%s", FOLDER, name);
    return path_rooted(path, out->sun_path, sizeof out->sun_path) && is_watcher(out);
}

static bool reach(const struct watcher *w)
{
    struct sockaddr_un address;
    return find_address(w->name, &address) && connect(w->fd, (struct sockaddr *)&address, sizeof address) == 0;
}

/* Bound to a name of the kernel's choice, so that it can be answered. */
static int open_sender(void)
{
    struct sockaddr_un any = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof any.sun_family) == 0)
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

static bool expect_answer(struct notify *n, const struct watcher *w)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)(w - n->watchers)};
    return epoll_ctl(n->answers, EPOLL_CTL_ADD, w->fd, &event) == 0;
}

static bool send_generation(const struct notify *n, const struct watcher *w)
{
    return send(w->fd, n->generation, strlen(n->generation), MSG_NOSIGNAL) >= 0;
}

static bool has_ended(int error)
{
    return error == ECONNREFUSED || error == ENOENT;
}

static const char *outcome_of(int error)
{
    if (error == EAGAIN)
        return "busy";
    return error == ENOTSOCK || error == EPROTOTYPE ? "invalid" : error_code(error);
}

static void forget(struct watcher *w)
{
    struct sockaddr_un address;
    if (find_address(w->name, &address))
        unlink(address.sun_path);
    w->outcome = NULL;
}

static void stop_expecting(struct watcher *w)
{
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
}

static void tell(struct notify *n, const char *name)
{
    struct watcher *w = &n->watchers[n->count];
    snprintf(w->name, sizeof w->name, "%s", name);
    w->fd = open_sender();
    if (w->fd >= 0 && reach(w) && expect_answer(n, w) && send_generation(n, w)) {
        n->count++;
        n->silent++;
        return;
    }
    int error = errno;
    stop_expecting(w);
    if (has_ended(error)) {
        forget(w);
        return;
    }
    w->outcome = outcome_of(error);
    n->count++;
}

static bool is_name(const char *name)
{
    return strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static int tell_each(struct notify *n, DIR *folder)
{
    const struct dirent *entry;
    for (size_t names = 0; (entry = readdir(folder)) != NULL; names++) {
        if (names == MOST_NAMES || n->count == MOST_WATCHERS)
            return EBUSY;
        if (is_name(entry->d_name))
            tell(n, entry->d_name);
    }
    return 0;
}

/* 0, or why not all could be told. */
static int tell_all(struct notify *n)
{
    char path[PATH_MAX];
    DIR *folder = path_rooted(FOLDER, path, sizeof path) ? opendir(path) : NULL;
    if (folder == NULL)
        return errno == ENOENT ? 0 : errno;
    int error = tell_each(n, folder);
    closedir(folder);
    return error;
}

static void settle(struct notify *n, struct watcher *w, const char *outcome, const char *evidence)
{
    stop_expecting(w);
    n->silent--;
    w->outcome = outcome;
    snprintf(w->evidence, sizeof w->evidence, "%s", evidence);
}

static const char *behind(const char *text, const char *prefix)
{
    size_t length = strlen(prefix);
    return strncmp(text, prefix, length) == 0 ? text + length : NULL;
}

static void read_answer(struct notify *n, struct watcher *w, const char *answer)
{
    const char *rest;
    if ((rest = behind(answer, "ok ")) != NULL)
        settle(n, w, strcmp(rest, n->generation) == 0 ? "ok" : "invalid", rest);
    else if ((rest = behind(answer, "error ")) != NULL)
        settle(n, w, "failed", rest);
    else
        settle(n, w, "invalid", answer);
}

static void take_answer(struct notify *n, struct watcher *w)
{
    char answer[EVIDENCE_SIZE];
    ssize_t got = recv(w->fd, answer, sizeof answer - 1, 0);
    if (got >= 0) {
        answer[got] = 0;
        read_answer(n, w, answer);
    } else if (errno != EAGAIN && errno != EINTR) {
        settle(n, w, error_code(errno), "");
    }
}

static void take_answers(struct notify *n)
{
    struct epoll_event events[MOST_EVENTS];
    int count;
    while ((count = epoll_wait(n->answers, events, MOST_EVENTS, 0)) > 0)
        for (int i = 0; i < count; i++)
            take_answer(n, &n->watchers[events[i].data.u64]);
}

/* A program may have ended since it was told: nothing else says so. */
static void give_up(struct notify *n, struct watcher *w)
{
    bool gone = !reach(w) && has_ended(errno);
    settle(n, w, "timeout", "");
    if (gone)
        forget(w);
}

static void give_up_silent(struct notify *n)
{
    for (size_t i = 0; i < n->count; i++)
        if (n->watchers[i].fd >= 0)
            give_up(n, &n->watchers[i]);
}

static void finish(struct stream *s, const struct notify *n)
{
    size_t mark = frame_begin(outbox(), REPLY, s->id);
    for (size_t i = 0; i < n->count; i++) {
        const struct watcher *w = &n->watchers[i];
        if (w->outcome == NULL)
            continue;
        put_text(outbox(), w->name);
        put_text(outbox(), w->outcome);
        put_text(outbox(), w->evidence);
    }
    end_reply(s->id, mark);
    stream_close(s);
}

static bool notify_pump(struct stream *s)
{
    struct notify *n = s->state;
    if (n->has_answers)
        take_answers(n);
    n->has_answers = false;
    if (n->limit_is_over)
        give_up_silent(n);
    if (n->silent > 0)
        return false;
    finish(s, n);
    return true;
}

static void notify_ready(struct stream *s, uint8_t channel)
{
    struct notify *n = s->state;
    uint64_t times;
    if (channel == CHANNEL_ANSWERS)
        n->has_answers = true;
    else if (channel == CHANNEL_LIMIT)
        n->limit_is_over |= read(n->limit, &times, sizeof times) > 0;
}

static void notify_close(struct stream *s)
{
    struct notify *n = s->state;
    for (size_t i = 0; i < n->count; i++)
        stop_expecting(&n->watchers[i]);
    if (n->answers >= 0)
        close(n->answers);
    if (n->limit >= 0)
        close(n->limit);
    free(n);
}

static const struct stream_kind NOTIFY = {.pump = notify_pump, .ready = notify_ready, .close = notify_close};

static void read_generation(struct notify *n)
{
    char path[PATH_MAX];
    if (path_rooted("/run/vmfork/generation", path, sizeof path))
        read_text(path, n->generation, sizeof n->generation);
}

static struct notify *notify_new(void)
{
    struct notify *n = zeroed(sizeof *n);
    n->answers = epoll_create1(EPOLL_CLOEXEC);
    n->limit = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    read_generation(n);
    return n;
}

static bool set_limit(const struct notify *n, uint64_t ms)
{
    struct itimerspec once = {.it_value = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000}};
    return n->answers >= 0 && n->limit >= 0 && timerfd_settime(n->limit, 0, &once, NULL) == 0;
}

static struct stream *start(uint32_t stream, struct notify *n, uint64_t limit_ms)
{
    int error;
    if (n->generation[0] == 0)
        send_error(stream, "not-found", "this machine has no generation", 0);
    else if (!set_limit(n, limit_ms))
        send_errno(stream, "no limit of time could be set", errno);
    else if ((error = tell_all(n)) != 0)
        send_errno(stream, "not all watchers can be told", error);
    else
        return stream_new(stream, &NOTIFY, n);
    return NULL;
}

void do_notify(uint32_t stream, struct fields *f)
{
    uint64_t limit_ms;
    if (!field_number(field_take(f), &limit_ms) || limit_ms < 1 || limit_ms > LONGEST_LIMIT_MS) {
        send_invalid(stream, "a limit in ms, at most an hour, is needed");
        return;
    }
    if (stream_of_kind(&NOTIFY) != NULL) {
        send_error(stream, "busy", "the watchers are being told already", 0);
        return;
    }
    struct notify *n = notify_new();
    struct stream *s = start(stream, n, limit_ms);
    if (s == NULL) {
        notify_close(&(struct stream){.state = n});
        return;
    }
    stream_watch(s, n->answers, CHANNEL_ANSWERS);
    stream_watch(s, n->limit, CHANNEL_LIMIT);
}
