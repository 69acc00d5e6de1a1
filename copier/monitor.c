#include "monitor.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../keeper/clock.h"

/* How it works. One connection, one command after the other: QEMU answers in their order, one line each, and puts
 * events between. An answer has one key, `return` or `error`, so it is known by its beginning. */

enum { OPEN_LIMIT_MS = 10000 };

static const char RETURN[] = "{\"return\": ", ERROR[] = "{\"error\": ", GREETING[] = "{\"QMP\": ";

static int line = -1;
static bool is_closed;
static char held[ANSWER_LIMIT];
static size_t held_size, taken;

static bool starts(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

/* Reads what is there, or waits for it. */
static bool read_more(int64_t deadline_ms)
{
    struct pollfd readable = {line, POLLIN, 0};
    if (held_size == sizeof held || poll(&readable, 1, wait_until(deadline_ms)) <= 0)
        return false;
    ssize_t got = recv(line, held + held_size, sizeof held - held_size, MSG_DONTWAIT);
    if (got > 0)
        held_size += (size_t)got;
    is_closed = got == 0;
    return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

/* The next line, without its end; NULL when none came in time. The one before is forgotten. */
static const char *next_line(int64_t deadline_ms)
{
    memmove(held, held + taken, held_size -= taken);
    taken = 0;
    char *end;
    while ((end = memchr(held, '\n', held_size)) == NULL)
        if (!read_more(deadline_ms))
            return NULL;
    *end = 0;
    taken = (size_t)(end - held) + 1;
    return held;
}

bool monitor_send_with(const char *command, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec text = {(char *)command, strlen(command)};
    struct msghdr message = {.msg_iov = &text, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *part = CMSG_FIRSTHDR(&message);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(part), &fd, sizeof fd);
    }
    return sendmsg(line, &message, MSG_NOSIGNAL) == (ssize_t)text.iov_len;
}

bool monitor_send(const char *command)
{
    return monitor_send_with(command, -1);
}

const char *monitor_wait(int64_t deadline_ms)
{
    const char *answer;
    while ((answer = next_line(deadline_ms)) != NULL) {
        if (starts(answer, RETURN))
            return answer + sizeof RETURN - 1;
        if (starts(answer, ERROR))
            return NULL;
    }
    return NULL;
}

void monitor_wait_for(const char *sign, int64_t deadline_ms)
{
    const char *answer;
    while ((answer = next_line(deadline_ms)) != NULL && strstr(answer, sign) == NULL)
        ;
}

const char *monitor_ask(const char *command, int limit_ms)
{
    return monitor_send(command) ? monitor_wait(now_ms() + limit_ms) : NULL;
}

const char *monitor_said(void)
{
    if (taken > 0)
        return held;
    return is_closed ? "it closed the connection" : "it did not answer in time";
}

bool monitor_open(int socket)
{
    line = socket;
    const char *greeting = next_line(now_ms() + OPEN_LIMIT_MS);
    return greeting != NULL && starts(greeting, GREETING) &&
           monitor_ask("{\"execute\": \"qmp_capabilities\"}", OPEN_LIMIT_MS) != NULL;
}
