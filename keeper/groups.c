#include "groups.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

enum { TRIES = 500, PAUSE_MS = 2 };

static bool join(const char *folder, pid_t process)
{
    char path[PATH_MAX], text[32];
    int size = snprintf(path, sizeof path, "%s/cgroup.procs", folder);
    if (size < 0 || size >= (int)sizeof path) {
        errno = ENAMETOOLONG;
        return false;
    }
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    size = snprintf(text, sizeof text, "%d", process);
    bool joined = write(fd, text, (size_t)size) == size || errno == ESRCH;
    int failed = errno;
    close(fd);
    errno = failed;
    return joined;
}

bool groups_join(const struct groups *groups, pid_t process)
{
    for (int index = 0; index < groups->count; index++)
        if (!join(groups->folders[index], process))
            return false;
    return true;
}

/* They are empty once the program has ended, or a moment later: the kernel takes its last thread from them when that
 * has stopped for good. Whoever removes the folder of the machine tries again. */
void groups_remove(const struct groups *groups)
{
    for (int index = 0; index < groups->count; index++)
        for (int tries = 0; tries < TRIES && rmdir(groups->folders[index]) != 0 && errno == EBUSY; tries++)
            poll(NULL, 0, PAUSE_MS);
}
