#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <termios.h>
#include <unistd.h>

/* How it works. A terminal has two ends: what is written to ours is typed, what is read from it is shown. The program
 * has the other end three times, and makes it its controlling terminal when it starts (launch.c), so that Ctrl-C and
 * Ctrl-Z reach the job in the foreground and nobody else.
 *
 * It differs from pipes in three ways. A read says EIO, and not 0, when nobody has it open, which need not be the end.
 * How much it holds cannot be asked: the kernel moves bytes from one queue into another as they are read, so what a
 * program left is all that comes until EAGAIN. And input has no end of its own: the key for it is typed, and means the
 * end to a program that reads lines. */

static int copy_of(int fd)
{
    return fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

static int open_theirs(int ours)
{
    int locked = 0;
    if (ioctl(ours, TIOCSPTLCK, &locked) != 0)
        return -1;
    return ioctl(ours, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
}

bool terminal_open(struct pipes *p, const struct winsize *window, const struct account *owner)
{
    *p = (struct pipes){{-1, -1, -1}, {-1, -1, -1}};
    int ours = p->ours[STDOUT_FILENO] = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (ours < 0)
        return false;
    /* One after the other: errno is to be that of the first that fails. */
    bool has_all = (p->ours[STDIN_FILENO] = copy_of(ours)) >= 0 && (p->theirs[0] = open_theirs(ours)) >= 0 &&
                   (p->theirs[1] = copy_of(p->theirs[0])) >= 0 && (p->theirs[2] = copy_of(p->theirs[0])) >= 0;
    if (!has_all || !terminal_resize(ours, window))
        return false;
    /* Its group, tty, stays: who may write to it is as on any terminal. */
    return owner == NULL || fchown(p->theirs[0], owner->uid, (gid_t)-1) == 0;
}

bool terminal_resize(int ours, const struct winsize *window)
{
    return ioctl(ours, TIOCSWINSZ, window) == 0;
}

bool terminal_type_end(int ours)
{
    struct termios now;
    if (tcgetattr(ours, &now) != 0)
        return false;
    return write(ours, &now.c_cc[VEOF], 1) == 1;
}
