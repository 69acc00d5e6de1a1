#include "pipes.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

void pipe_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void pipes_close(int fds[PIPES])
{
    for (int i = 0; i < PIPES; i++)
        pipe_close(&fds[i]);
}

static bool make_pipe(struct pipes *p, int number)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return false;
    bool inwards = number == STDIN_FILENO;
    p->theirs[number] = ends[inwards ? 0 : 1];
    p->ours[number] = ends[inwards ? 1 : 0];
    /* /dev/stdout opens the pipe anew, as the user the program runs as, or became. Who cannot look into the process has
     * no way to it. */
    return fchmod(ends[0], 0666) == 0 && fcntl(p->ours[number], F_SETFL, O_NONBLOCK) == 0;
}

bool pipes_open(struct pipes *p, bool wants_stdin)
{
    *p = (struct pipes){{-1, -1, -1}, {-1, -1, -1}};
    if (!wants_stdin)
        p->theirs[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    bool input = wants_stdin ? make_pipe(p, STDIN_FILENO) : p->theirs[0] >= 0;
    return input && make_pipe(p, STDOUT_FILENO) && make_pipe(p, STDERR_FILENO);
}
