#include "beside.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "clock.h"
#include "message.h"

/* How it works. QEMU 7.2 tells its guest nothing when whoever has the other end of its card is gone: what is sent goes
 * nowhere. So its monitor is asked to take the carrier down (set_link), by the keeper, since an owner may be gone or
 * far away. QEMU greets one client at a time. Where the owner holds the monitor, what is asked here waits in its
 * backlog, and the owner does the same itself. */

enum { ANSWER_LIMIT_MS = 5000 };
#define MARK "vmfork-card-lost"
static const char ASKED[] = "{\"execute\": \"qmp_capabilities\"}\n"
                            "{\"execute\": \"set_link\", \"arguments\": {\"name\": \"card\", \"up\": false},"
                            " \"id\": \"" MARK "\"}\n";

/* The pid of a process that nobody has reaped, from its pidfd; 0 where it has ended. */
static pid_t read_pid(int process)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", process);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[size < 0 ? 0 : size] = 0;
    const char *found = strstr(text, "\nPid:");
    long pid = found == NULL ? 0 : strtol(found + strlen("\nPid:"), NULL, 10);
    return pid > 0 ? (pid_t)pid : 0;
}

bool beside_join(const struct beside *beside, const struct groups *groups)
{
    if (beside->process < 0 || groups->count == 0)
        return true;
    pid_t pid = read_pid(beside->process);
    return pid == 0 || groups_join(groups, pid);
}

static int reach(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (path == NULL || strlen(path) >= sizeof address.sun_path)
        return -1;
    strcpy(address.sun_path, path);
    int line = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (line >= 0 && connect(line, (struct sockaddr *)&address, sizeof address) != 0)
        close_all(&line, 1);
    return line;
}

void beside_tell(struct beside *beside)
{
    close_all(&beside->process, 1);
    beside->line = reach(beside->monitor);
    if (beside->line >= 0 && send(beside->line, ASKED, sizeof ASKED - 1, MSG_NOSIGNAL) != sizeof ASKED - 1)
        close_all(&beside->line, 1);
}

static void hang_up(struct beside *beside)
{
    close_all(&beside->line, 1);
    beside->deadline = NEVER;
}

void beside_read(struct beside *beside)
{
    char text[4096];
    ssize_t size = recv(beside->line, text, sizeof text - 1, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    text[size < 0 ? 0 : size] = 0;
    bool answered = strstr(text, MARK) != NULL;
    if (answered)
        fputs("vmfork-keeper: passt has ended; the card leads nowhere, and has no carrier\n", stderr);
    if (answered || size <= 0)
        hang_up(beside);
    else
        beside->deadline = now_ms() + ANSWER_LIMIT_MS;
}

void beside_check_deadline(struct beside *beside)
{
    if (now_ms() >= beside->deadline)
        hang_up(beside);
}

void beside_end(const struct beside *beside)
{
    if (beside->process < 0)
        return;
    syscall(SYS_pidfd_send_signal, beside->process, SIGKILL, NULL, 0);
    struct pollfd ended = {beside->process, POLLIN, 0};
    while (poll(&ended, 1, -1) < 0)
        ;
}
