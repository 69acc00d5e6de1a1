/* Compiled into an agent for tests: calls of the C library that fail or lie once the fork's id names them.
 * The agent's sources are compiled with -Dsethostname=faulty_sethostname and so on; this file is not. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static int is_asked_for(const char *fault)
{
    char asked[64] = "";
    int fd = open("/run/vmfork/fork-id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t got = read(fd, asked, sizeof asked - 1);
    close(fd);
    return got > 0 && strncmp(asked, fault, strlen(fault)) == 0;
}

int faulty_sethostname(const char *name, size_t length)
{
    if (is_asked_for("die"))
        _exit(1);
    if (is_asked_for("hang"))
        for (;;)
            sleep(1000);
    return is_asked_for("lie-hostname") ? 0 : sethostname(name, length);
}

int faulty_clock_settime(clockid_t clock, const struct timespec *time)
{
    if (is_asked_for("refuse-clock")) {
        errno = EPERM;
        return -1;
    }
    return is_asked_for("lie-clock") ? 0 : clock_settime(clock, time);
}
