/* WRITE: the content of a file. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "answer.h"
#include "memory.h"
#include "operation.h"
#include "path.h"
#include "reader.h"
#include "room.h"
#include "stream.h"
#include "target.h"
#include "version.h"

/* How content gets to its place.
 *
 *   beside     a regular file is written under another name in its folder, and renamed at the end: nobody sees half
 *   in place   what must stay the thing it is (target.c), and every `append`, is written as a shell's > and >> would
 *
 * In place a write may have to wait: a pipe is full, or nobody reads it yet (reader.c). Then the bytes are held, which
 * the credit bounds, until the descriptor is ready. */

enum { UPLOAD_APPEND = 1, UPLOAD_PARENTS = 2, UPLOAD_EXCLUSIVE = 4 };

static const char *const UPLOAD_OPTIONS[] = {"append", "parents", "exclusive", NULL};

enum {
    CHANNEL_FILE = 0,
    CHANNEL_READER = 1,
    NEW_FILE_MODE = 0644,
    /* Programs of the guest take memory meanwhile: that there was room for the whole at first says little. */
    LOOK_FOR_ROOM_EVERY = 1024 * 1024,
};

struct upload {
    int fd;
    unsigned options;
    bool has_mode;
    unsigned mode;
    /* What the host means to send; 0 where it does not say. */
    uint64_t size;
    uint64_t written;
    /* A pipe or a device takes none. For the others, room is looked for again when `written` reaches `room_until`. */
    bool takes_room;
    uint64_t room_until;
    struct target target;
    /* Empty when the content goes straight to the file. */
    char temporary[PATH_MAX];
    struct buffer held;
    bool ready;
    bool ended;
    /* While a pipe has no reader. */
    struct reader reader;
};

static void upload_fail(struct stream *s, const char *message, int error)
{
    send_errno(s->id, message, error);
    stream_close(s);
}

static unsigned final_mode(const struct upload *u)
{
    if (u->has_mode)
        return u->mode;
    return u->target.exists ? u->target.st.st_mode & 07777 : NEW_FILE_MODE;
}

/* The mode comes last: a change of owner clears set-user-ID and set-group-ID. */
static bool dress(const struct upload *u)
{
    bool like_before = !u->target.exists || target_copy_traits(&u->target, u->fd);
    return like_before && fchmod(u->fd, final_mode(u)) == 0;
}

/* link(2), unlike rename(2), never takes the place of another file. */
static bool publish(struct upload *u)
{
    if (u->temporary[0] == 0)
        return true;
    if (!dress(u))
        return false;
    if (u->options & UPLOAD_EXCLUSIVE)
        return link(u->temporary, u->target.path) == 0;
    if (rename(u->temporary, u->target.path) != 0)
        return false;
    u->temporary[0] = 0;
    return true;
}

static void finish(struct stream *s, struct upload *u)
{
    if (!publish(u)) {
        upload_fail(s, "the file could not be put in place", errno);
        return;
    }
    size_t mark = frame_begin(outbox(), REPLY, s->id);
    put_number(outbox(), (int64_t)u->written);
    end_reply(s->id, mark);
    stream_close(s);
}

static bool has_room(struct upload *u, uint64_t bytes, char why[ROOM_TEXT])
{
    if (!u->takes_room || u->written + bytes <= u->room_until)
        return true;
    u->room_until = u->written + LOOK_FOR_ROOM_EVERY;
    return room_for(u->fd, bytes, why);
}

static void take_written(struct stream *s, struct upload *u, size_t length)
{
    buffer_take(&u->held, length);
    u->written += length;
    stream_grant(s, length);
}

static void write_held(struct stream *s, struct upload *u)
{
    char why[ROOM_TEXT];
    size_t length = buffer_length(&u->held);
    if (!has_room(u, length, why)) {
        send_error(s->id, "no-space", why, ENOSPC);
        stream_close(s);
        return;
    }
    ssize_t put = write(u->fd, buffer_head(&u->held), length);
    if (put > 0)
        take_written(s, u, (size_t)put);
    else if (put < 0 && (errno == EAGAIN || errno == EINTR))
        u->ready = errno == EINTR;
    else
        upload_fail(s, "the file could not be written", put < 0 ? errno : EIO);
}

static void watch(struct stream *s, const struct upload *u)
{
    if (u->fd >= 0)
        stream_watch(s, u->fd, CHANNEL_FILE);
    else
        stream_watch(s, u->reader.news, CHANNEL_READER);
}

/* A reader that came may have gone again: then the pipe is refused like one whose reader goes later. */
static void open_for_reader(struct stream *s, struct upload *u)
{
    int error = reader_news(&u->reader);
    if (error == EAGAIN)
        return;
    if (error == 0) {
        u->fd = open(u->target.path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        error = u->fd < 0 ? EPIPE : 0;
    }
    reader_forget(&u->reader);
    if (error == 0)
        watch(s, u);
    else
        upload_fail(s, "the pipe cannot be opened for writing", error);
}

static bool upload_pump(struct stream *s)
{
    struct upload *u = s->state;
    size_t held = buffer_length(&u->held);
    if (u->fd < 0 || (held > 0 && !u->ready) || (held == 0 && !u->ended))
        return false;
    if (held > 0)
        write_held(s, u);
    else
        finish(s, u);
    return true;
}

static void upload_data(struct stream *s, const uint8_t *bytes, size_t length)
{
    struct upload *u = s->state;
    buffer_add(&u->held, bytes, length);
}

static void upload_eof(struct stream *s)
{
    struct upload *u = s->state;
    u->ended = true;
}

static void upload_ready(struct stream *s, uint8_t channel)
{
    struct upload *u = s->state;
    if (channel == CHANNEL_FILE)
        u->ready = true;
    else
        open_for_reader(s, u);
}

static void upload_close(struct stream *s)
{
    struct upload *u = s->state;
    reader_forget(&u->reader);
    if (u->fd >= 0)
        close(u->fd);
    if (u->temporary[0] != 0)
        unlink(u->temporary);
    buffer_free(&u->held);
    free(u);
}

static const struct stream_kind UPLOAD = {
    .data = upload_data,
    .eof = upload_eof,
    .pump = upload_pump,
    .ready = upload_ready,
    .close = upload_close,
};

/* `append` is O_APPEND or 0. */
static bool open_in_place(struct upload *u, int append)
{
    u->fd = open(u->target.path, O_WRONLY | append | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    return u->fd >= 0 || (errno == ENXIO && S_ISFIFO(u->target.st.st_mode) && reader_await(&u->reader, u->target.path));
}

static bool open_append(struct upload *u)
{
    if (u->target.exists)
        return open_in_place(u, O_APPEND);
    u->fd = open(u->target.path, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return u->fd >= 0 && fchmod(u->fd, final_mode(u)) == 0;
}

static bool open_beside(struct upload *u)
{
    if (!beside(u->target.path, u->temporary, sizeof u->temporary))
        return false;
    u->fd = open(u->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (u->fd < 0)
        u->temporary[0] = 0;
    return u->fd >= 0;
}

/* The files of /proc and /sys are regular ones, and no other can be made beside them. */
static bool only_in_place(const struct upload *u, int error)
{
    return u->target.exists && (error == EACCES || error == EPERM || error == EROFS || error == ENOENT);
}

static bool open_replace(struct upload *u)
{
    if (u->target.in_place)
        return open_in_place(u, 0);
    return open_beside(u) || (only_in_place(u, errno) && open_in_place(u, 0));
}

static bool is_taken(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

static bool open_upload(struct upload *u, const char *path)
{
    if (u->options & UPLOAD_EXCLUSIVE && is_taken(path)) {
        errno = EEXIST;
        return false;
    }
    if (!target_find(&u->target, path))
        return false;
    if (u->options & UPLOAD_PARENTS && !u->target.exists && !make_parents(u->target.path))
        return false;
    return u->options & UPLOAD_APPEND ? open_append(u) : open_replace(u);
}

/* A file that is written over in place gives its own room back first. */
static bool make_room(struct upload *u, char why[ROOM_TEXT])
{
    struct stat st;
    if (u->fd < 0 || fstat(u->fd, &st) != 0 || !S_ISREG(st.st_mode))
        return true;
    bool over = u->temporary[0] == 0 && !(u->options & UPLOAD_APPEND);
    uint64_t freed = over ? (uint64_t)st.st_size : 0;
    u->takes_room = true;
    if (u->size > freed && !room_for(u->fd, u->size - freed, why))
        return false;
    u->room_until = u->size < LOOK_FOR_ROOM_EVERY ? u->size : LOOK_FOR_ROOM_EVERY;
    return !over || ftruncate(u->fd, 0) == 0;
}

static void start_upload(uint32_t stream, struct upload *u, const char *path)
{
    char why[ROOM_TEXT] = "";
    u->fd = u->reader.news = -1;
    u->ready = true;
    if (!open_upload(u, path)) {
        send_errno(stream, "the file cannot be opened for writing", errno);
    } else if (!make_room(u, why)) {
        if (why[0] != 0)
            send_error(stream, "no-space", why, ENOSPC);
        else
            send_errno(stream, "the file cannot be emptied", errno);
    } else {
        struct stream *s = stream_new(stream, &UPLOAD, u);
        if (s != NULL) {
            watch(s, u);
            return;
        }
    }
    upload_close(&(struct stream){.state = u});
}

static bool read_mode(struct upload *u, struct field mode)
{
    u->has_mode = PROTOCOL < 3 || mode.length > 0;
    return !u->has_mode || field_mode(mode, &u->mode);
}

void do_write(uint32_t stream, struct fields *f)
{
    char path[PATH_MAX];
    struct upload *u = zeroed(sizeof *u);
    bool sound = field_path(field_take(f), path, sizeof path) && read_mode(u, field_take(f));
    if (!sound)
        send_invalid(stream, "an absolute path and a mode are needed");
    else if (!field_options(field_take(f), UPLOAD_OPTIONS, &u->options))
        send_error(stream, "unsupported", "an option this agent does not know", 0);
    else if (f->count > 0 && !field_number(field_take(f), &u->size))
        send_invalid(stream, "a size that is no number");
    else {
        start_upload(stream, u, path);
        return;
    }
    free(u);
}
