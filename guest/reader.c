#include "reader.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Nothing tells that a pipe is read but open(2) itself, which waits for it. So a child opens it, says so, and keeps it
 * open until we have opened it too: a reader that found no writer any more would be at the end of what it reads. */

enum { NEWS = STDERR_FILENO + 1 };

/* Nothing else of ours may be open in it: it would keep a program's input from its end. */
static _Noreturn void wait_for_reader(const char *path, int news)
{
    dup2(news, NEWS);
    syscall(SYS_close_range, NEWS + 1, ~0u, 0);
    unsigned char error = open(path, O_WRONLY | O_NOCTTY) < 0 ? (unsigned char)errno : 0;
    (void)!write(NEWS, &error, 1);
    for (;;)
        pause();
}

bool reader_await(struct reader *r, const char *path)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)
        return false;
    r->child = fork();
    if (r->child == 0)
        wait_for_reader(path, ends[1]);
    close(ends[1]);
    r->news = ends[0];
    return r->child > 0;
}

int reader_news(const struct reader *r)
{
    unsigned char error;
    ssize_t got = read(r->news, &error, 1);
    if (got > 0)
        return error;
    return got < 0 && (errno == EAGAIN || errno == EINTR) ? EAGAIN : EPIPE;
}

void reader_forget(struct reader *r)
{
    if (r->child > 0)
        kill(r->child, SIGKILL);
    if (r->news >= 0)
        close(r->news);
    *r = (struct reader){.news = -1};
}
