#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KEPT = 64 * 1024, LOG_LIMIT = 2 * KEPT, PIECE = 8192 };

bool log_open(struct log *log, const char *name)
{
    struct stat found;
    *log = (struct log){.file = open(name, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600)};
    if (log->file < 0 || fstat(log->file, &found) != 0)
        return false;
    log->total = log->size = (uint64_t)found.st_size;
    return true;
}

void log_close(struct log *log)
{
    if (log->file >= 0)
        close(log->file);
    log->file = -1;
}

/* The file starts anew with its last part. A reader that follows it sees that it has become shorter. */
static void shorten(struct log *log)
{
    static char kept[KEPT];
    ssize_t got = pread(log->file, kept, KEPT, (off_t)(log->size - KEPT));
    if (got < 0 || ftruncate(log->file, 0) != 0)
        return;
    ssize_t put = write(log->file, kept, (size_t)got);
    log->size = put > 0 ? (uint64_t)put : 0;
}

void log_add(struct log *log, const void *bytes, size_t length)
{
    if (log->size + length > LOG_LIMIT && log->size > KEPT)
        shorten(log);
    ssize_t put = write(log->file, bytes, length);
    if (put > 0)
        log->size += (uint64_t)put;
    log->total += length;
}

size_t log_read(const struct log *log, uint64_t *from, void *into, size_t limit)
{
    uint64_t first = log->total - log->size;
    if (*from < first)
        *from = first;
    if (*from >= log->total)
        return 0;
    ssize_t got = pread(log->file, into, limit, (off_t)(*from - first));
    return got > 0 ? (size_t)got : 0;
}

bool log_drain(struct log *log, int console, void (*look)(const char *text, size_t length))
{
    char text[PIECE];
    ssize_t size = recv(console, text, sizeof text, MSG_DONTWAIT);
    if (size <= 0)
        return size < 0 && (errno == EAGAIN || errno == EINTR);
    log_add(log, text, (size_t)size);
    look(text, (size_t)size);
    return true;
}
