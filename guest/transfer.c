/* READ and WRITE: the content of files. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "answer.h"
#include "fatal.h"
#include "operation.h"
#include "path.h"
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

static void *zeroed(size_t size)
{
    void *memory = calloc(1, size);
    if (memory == NULL)
        fatal("out of memory");
    return memory;
}

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

enum { UPLOAD_APPEND = 1, UPLOAD_PARENTS = 2, UPLOAD_EXCLUSIVE = 4 };

static const char *const UPLOAD_OPTIONS[] = {"append", "parents", "exclusive", NULL};

struct upload {
    int fd;
    unsigned options;
    unsigned mode;
    uint64_t written;
    char path[PATH_MAX];
    /* Empty when the content goes straight to the file. */
    char temporary[PATH_MAX];
};

static void upload_fail(struct stream *s, const char *message, int error)
{
    send_errno(s->id, message, error);
    stream_close(s);
}

static void upload_data(struct stream *s, const uint8_t *bytes, size_t length)
{
    struct upload *u = s->state;
    for (size_t done = 0; done < length;) {
        ssize_t put = write(u->fd, bytes + done, length - done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0) {
            upload_fail(s, "the file could not be written", errno);
            return;
        }
        done += (size_t)put;
    }
    u->written += length;
    stream_grant(s, length);
}

/* link(2), unlike rename(2), never takes the place of another file. */
static bool publish(struct upload *u)
{
    if (u->temporary[0] == 0)
        return true;
    if (fchmod(u->fd, u->mode) != 0)
        return false;
    if (u->options & UPLOAD_EXCLUSIVE)
        return link(u->temporary, u->path) == 0;
    if (rename(u->temporary, u->path) != 0)
        return false;
    u->temporary[0] = 0;
    return true;
}

static void upload_eof(struct stream *s)
{
    struct upload *u = s->state;
    if (!publish(u)) {
        upload_fail(s, "the file could not be put in place", errno);
        return;
    }
    size_t mark = frame_begin(outbox(), REPLY, s->id);
    put_number(outbox(), (int64_t)u->written);
    end_reply(s->id, mark);
    stream_close(s);
}

static void upload_close(struct stream *s)
{
    struct upload *u = s->state;
    if (u->fd >= 0)
        close(u->fd);
    if (u->temporary[0] != 0)
        unlink(u->temporary);
    free(u);
}

static const struct stream_kind UPLOAD = {.data = upload_data, .eof = upload_eof, .close = upload_close};

static bool open_append(struct upload *u)
{
    int exclusive = u->options & UPLOAD_EXCLUSIVE ? O_EXCL : 0;
    u->fd = open(u->path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | exclusive, u->mode);
    return u->fd >= 0;
}

/* A link is written through, as every program that writes a file would do. */
static void follow_link(char path[PATH_MAX], const struct stat *st)
{
    char target[PATH_MAX];
    if (S_ISLNK(st->st_mode) && realpath(path, target) != NULL)
        memcpy(path, target, strlen(target) + 1);
}

static bool open_replace(struct upload *u)
{
    struct stat st;
    bool exists = lstat(u->path, &st) == 0;
    if (exists && u->options & UPLOAD_EXCLUSIVE) {
        errno = EEXIST;
        return false;
    }
    if (exists)
        follow_link(u->path, &st);
    if (stat(u->path, &st) == 0 && S_ISDIR(st.st_mode)) {
        errno = EISDIR;
        return false;
    }
    if (!beside(u->path, u->temporary, sizeof u->temporary))
        return false;
    u->fd = open(u->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (u->fd < 0)
        u->temporary[0] = 0;
    return u->fd >= 0;
}

static bool open_upload(struct upload *u)
{
    if (u->options & UPLOAD_PARENTS && !make_parents(u->path))
        return false;
    return u->options & UPLOAD_APPEND ? open_append(u) : open_replace(u);
}

static void start_upload(uint32_t stream, struct upload *u)
{
    u->fd = -1;
    if (!open_upload(u))
        send_errno(stream, "the file cannot be opened for writing", errno);
    else if (stream_new(stream, &UPLOAD, u) != NULL)
        return;
    upload_close(&(struct stream){.state = u});
}

void do_write(uint32_t stream, struct fields *f)
{
    struct upload *u = zeroed(sizeof *u);
    bool sound = field_path(field_take(f), u->path, sizeof u->path) && field_mode(field_take(f), &u->mode);
    if (!sound)
        send_invalid(stream, "an absolute path and a mode are needed");
    else if (!field_options(field_take(f), UPLOAD_OPTIONS, &u->options))
        send_error(stream, "unsupported", "an option this agent does not know", 0);
    else {
        start_upload(stream, u);
        return;
    }
    free(u);
}
