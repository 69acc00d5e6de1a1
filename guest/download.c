/* READ: the content of a file. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "answer.h"
#include "memory.h"
#include "operation.h"
#include "stream.h"

struct download {
    int fd;
    uint64_t left;
    uint64_t sent;
    unsigned mode;
};

static void download_finish(struct stream *s, const struct download *d)
{
    size_t mark = frame_begin(outbox(), REPLY, s->id);
    put_number(outbox(), (int64_t)d->sent);
    put_octal(outbox(), d->mode);
    end_reply(s->id, mark);
    stream_close(s);
}

static bool download_pump(struct stream *s)
{
    struct download *d = s->state;
    if (d->left == 0) {
        download_finish(s, d);
        return true;
    }
    size_t limit = stream_allowance(s, CHANNEL_CONTENT);
    if (limit == 0)
        return false;
    long got = stream_send_from(s, CHANNEL_CONTENT, d->fd, limit < d->left ? limit : (size_t)d->left);
    if (got > 0) {
        d->left -= (uint64_t)got;
        d->sent += (uint64_t)got;
    } else if (got == 0) {
        download_finish(s, d);
    } else if (errno != EINTR) {
        send_errno(s->id, "the file could not be read", errno);
        stream_close(s);
    }
    return true;
}

static void download_close(struct stream *s)
{
    struct download *d = s->state;
    close(d->fd);
    free(d);
}

static const struct stream_kind DOWNLOAD = {.pump = download_pump, .close = download_close};

/* Only regular files: reading a pipe or a device could wait for ever, and the agent with it. -1 with errno set. */
static int open_regular(const char *path, struct stat *st)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return -1;
    if (fstat(fd, st) == 0 && S_ISREG(st->st_mode))
        return fd;
    int error = S_ISDIR(st->st_mode) ? EISDIR : EINVAL;
    close(fd);
    errno = error;
    return -1;
}

static void start_download(uint32_t stream, const char *path, uint64_t offset, uint64_t length)
{
    struct stat st = {0};
    int fd = open_regular(path, &st);
    if (fd < 0) {
        send_errno(stream, "the file cannot be opened for reading", errno);
        return;
    }
    struct download *d = zeroed(sizeof *d);
    *d = (struct download){.fd = fd, .left = length, .mode = st.st_mode & 07777};
    if (offset > 0 && lseek(fd, (off_t)offset, SEEK_SET) < 0)
        send_errno(stream, "the file has no such offset", errno);
    else if (stream_new(stream, &DOWNLOAD, d) != NULL)
        return;
    download_close(&(struct stream){.state = d});
}

void do_read(uint32_t stream, struct fields *f)
{
    char path[PATH_MAX];
    uint64_t offset, length = UINT64_MAX;
    bool sound = field_path(field_take(f), path, sizeof path) && field_number(field_take(f), &offset);
    struct field limit = sound ? field_take(f) : (struct field){0};
    if (!sound || offset > INT64_MAX || (limit.length > 0 && !field_number(limit, &length)))
        send_invalid(stream, "a path, an offset and a length are needed");
    else
        start_download(stream, path, offset, length);
}
