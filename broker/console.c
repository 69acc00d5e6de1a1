#include "console.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KEPT = 64 * 1024, LOG_LIMIT = 2 * KEPT, PIECE = 8192 };

int console_log = -1;

bool console_open(void)
{
    console_log = open("console.log", O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    return console_log >= 0;
}

/* The file starts anew with its last part. A reader that follows it sees that it has become shorter. */
static void shorten(off_t size)
{
    static char kept[KEPT];
    ssize_t got = pread(console_log, kept, KEPT, size - KEPT);
    if (ftruncate(console_log, 0) == 0 && got > 0)
        (void)!write(console_log, kept, (size_t)got);
}

bool console_drain(int console)
{
    char text[PIECE];
    ssize_t size = recv(console, text, sizeof text, MSG_DONTWAIT);
    if (size <= 0)
        return size < 0 && (errno == EAGAIN || errno == EINTR);
    struct stat log;
    if (fstat(console_log, &log) == 0 && log.st_size + size > LOG_LIMIT)
        shorten(log.st_size);
    /* A disk that takes nothing costs the log: a guest whose console nobody reads would stand still. */
    (void)!write(console_log, text, (size_t)size);
    return true;
}
