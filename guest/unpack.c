/* PUT: a tree of the host's, made as it comes. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "answer.h"
#include "entry.h"
#include "memory.h"
#include "operation.h"
#include "path.h"
#include "room.h"
#include "stream.h"
#include "target.h"

/* How a tree is made. The bytes of the stream (entry.h) are held, as many as the credit allows, and each pump takes
 * some steps: an entry is made, or the bytes of a file that are there are written. Whatever is made stands under a
 * temporary name until it is whole, and takes the place of what had its name by rename(2).
 *
 * A folder that is there is gone into and keeps its owner, mode and time. One that is made has its mode at once, so
 * that a copy that breaks off leaves no folder of another mode, and its time when its last entry was made.
 *
 * Credit for an entry goes back once it is in place. What the host was given back before an ERROR so tells it what has
 * arrived. */

enum { PUT_PARENTS = 1, PUT_ARCHIVE = 2 };

static const char *const PUT_OPTIONS[] = {"parents", "archive", NULL};

enum {
    STEPS_A_PUMP = 64,
    GRANT_SIZE = FIRST_CREDIT / 4,
    /* More than every stream has from the start: else a tree of small files costs a round trip every few of them. */
    MORE_CREDIT = FIRST_CREDIT,
    LOOK_FOR_ROOM_EVERY = 1024 * 1024,
    /* What a name takes in a file system that lies in memory, about. */
    ROOM_A_NAME = 1024,
    TEMPORARY_NAME = 64,
};

struct level {
    struct level *above;
    int fd;
    /* Its time is set when it is left. */
    bool made;
    struct timespec mtime;
};

struct unpack {
    unsigned options;
    struct buffer held;
    bool ended;
    /* Used up, and not given back yet. */
    size_t owed;
    /* The folder that new entries are made in; the first is the one that holds the root. */
    struct level *last;
    unsigned depth;
    /* The root's name there; empty where it keeps the one it has. */
    char name[NAME_MAX + 1];
    /* `path` ended with a slash: it can only be a folder. */
    bool needs_folder;
    /* The path is a folder that is there: a root that is one is merged into it. */
    bool merges;
    bool root_done;
    struct entry entry;
    /* The file that is written, or -1. */
    int fd;
    char temporary[TEMPORARY_NAME];
    uint64_t piece_at;
    uint32_t piece_left;
    /* How far it was written. */
    uint64_t written_to;
    uint64_t entries;
    uint64_t bytes;
    uint64_t since_room;
    char why[ROOM_TEXT];
};

enum step { STEP_DONE, STEP_WAITS, STEP_FAILED };

/* errno for a stream that makes no sense. */
enum { SENSELESS = EPROTO };

static enum step outcome(bool done)
{
    return done ? STEP_DONE : STEP_FAILED;
}

static bool fail_with(int error)
{
    errno = error;
    return false;
}

static void used(struct unpack *u, size_t length)
{
    buffer_take(&u->held, length);
    u->owed += length;
}

static void give_back(struct stream *s, struct unpack *u)
{
    stream_grant(s, u->owed);
    u->owed = 0;
}

static bool takes_room(struct unpack *u, uint64_t bytes)
{
    u->since_room += bytes;
    if (u->since_room < LOOK_FOR_ROOM_EVERY)
        return true;
    u->since_room = 0;
    return room_for(u->last->fd, LOOK_FOR_ROOM_EVERY, u->why) || fail_with(ENOSPC);
}

static void name_temporary(struct unpack *u)
{
    static unsigned count;
    snprintf(u->temporary, sizeof u->temporary, ".vmfork-%d-put-%u", (int)getpid(), count++);
}

/* There is something under the temporary name, to be removed when it does not come to its place. */
static bool hold_temporary(struct unpack *u, bool made)
{
    if (!made)
        u->temporary[0] = 0;
    return made;
}

static bool go_in(struct unpack *u, int fd, bool made)
{
    if (fd < 0)
        return false;
    struct level *level = zeroed(sizeof *level);
    *level = (struct level){.above = u->last, .fd = fd, .made = made, .mtime = entry_time(&u->entry)};
    u->last = level;
    u->depth++;
    return true;
}

static bool set_time(int at, const char *name, struct timespec mtime)
{
    const struct timespec times[] = {{.tv_nsec = UTIME_OMIT}, mtime};
    return utimensat(at, name, times, AT_SYMLINK_NOFOLLOW) == 0;
}

static bool set_fd_time(int fd, struct timespec mtime)
{
    const struct timespec times[] = {{.tv_nsec = UTIME_OMIT}, mtime};
    return futimens(fd, times) == 0;
}

static void go_out(struct unpack *u)
{
    struct level *level = u->last;
    u->last = level->above;
    u->depth--;
    /* The folder is whole without its time as well. */
    if (level->made)
        set_fd_time(level->fd, level->mtime);
    close(level->fd);
    free(level);
}

/* Another owner's rights are lent only where owners are kept. The mode comes last: a change of owner clears them. */
static bool dress(const struct unpack *u, int fd)
{
    const struct entry *e = &u->entry;
    if (u->options & PUT_ARCHIVE)
        return fchown(fd, e->uid, e->gid) == 0 && fchmod(fd, e->mode) == 0;
    return fchmod(fd, e->mode & 0777) == 0;
}

static bool put_in_place(struct unpack *u)
{
    if (renameat(u->last->fd, u->temporary, u->last->fd, u->entry.name) != 0)
        return false;
    u->temporary[0] = 0;
    return true;
}

static bool merge_root(struct unpack *u)
{
    return go_in(u, openat(u->last->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), false);
}

/* A link to a folder, such as /lib, counts as one. */
static bool make_folder(struct unpack *u)
{
    int at = u->last->fd;
    if (u->depth > MOST_DEPTH)
        return fail_with(ENAMETOOLONG);
    if (u->merges && u->depth == 1)
        return merge_root(u);
    bool made = mkdirat(at, u->entry.name, 0700) == 0;
    if (!made && errno != EEXIST)
        return false;
    return go_in(u, openat(at, u->entry.name, O_RDONLY | O_DIRECTORY | O_CLOEXEC), made) &&
           (!made || dress(u, u->last->fd));
}

static bool open_file(struct unpack *u)
{
    name_temporary(u);
    u->fd = openat(u->last->fd, u->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    u->piece_left = 0;
    u->written_to = 0;
    return hold_temporary(u, u->fd >= 0);
}

static bool own_link(const struct unpack *u)
{
    const struct entry *e = &u->entry;
    return !(u->options & PUT_ARCHIVE) || fchownat(u->last->fd, u->temporary, e->uid, e->gid, AT_SYMLINK_NOFOLLOW) == 0;
}

static bool make_link(struct unpack *u)
{
    int at = u->last->fd;
    name_temporary(u);
    return hold_temporary(u, symlinkat(u->entry.target, at, u->temporary) == 0) && own_link(u) &&
           set_time(at, u->temporary, entry_time(&u->entry)) && put_in_place(u);
}

/* The folder that is the tree's root, from which paths of the stream count. */
static int root_of(const struct unpack *u)
{
    const struct level *level = u->last;
    for (unsigned i = u->depth; i > 2; i--)
        level = level->above;
    return level->fd;
}

static bool leads_up(const char *path)
{
    for (;;) {
        size_t length = strcspn(path, "/");
        if (length == 0 || (length <= 2 && strncmp(path, "..", length) == 0))
            return true;
        if (path[length] == 0)
            return false;
        path += length + 1;
    }
}

/* rename(2) does nothing where both are names of one file. */
static bool make_hard_link(struct unpack *u)
{
    int at = u->last->fd;
    if (u->depth < 2 || leads_up(u->entry.target))
        return fail_with(SENSELESS);
    name_temporary(u);
    if (!hold_temporary(u, linkat(root_of(u), u->entry.target, at, u->temporary, 0) == 0))
        return false;
    bool done = renameat(at, u->temporary, at, u->entry.name) == 0;
    int error = errno;
    unlinkat(at, u->temporary, 0);
    u->temporary[0] = 0;
    return done || fail_with(error);
}

/* Only the root has another name than the host's, and only one root comes. */
static bool take_name(struct unpack *u)
{
    bool is_root = u->depth == 1;
    if (u->entry.type == ENTRY_UP)
        return !is_root || fail_with(SENSELESS);
    if (!is_root)
        return true;
    if (u->root_done)
        return fail_with(SENSELESS);
    if (u->needs_folder && u->entry.type != ENTRY_DIR)
        return fail_with(ENOTDIR);
    if (u->name[0] != 0)
        strcpy(u->entry.name, u->name);
    return true;
}

static bool make_entry(struct unpack *u)
{
    if (!take_name(u))
        return false;
    switch (u->entry.type) {
    case ENTRY_FILE:
        return open_file(u);
    case ENTRY_DIR:
        return make_folder(u);
    case ENTRY_LINK:
        return make_link(u);
    case ENTRY_HARD:
        return make_hard_link(u);
    case ENTRY_UP:
        go_out(u);
        return true;
    default:
        return fail_with(SENSELESS);
    }
}

static enum step take_entry(struct unpack *u)
{
    size_t held = buffer_length(&u->held);
    if (held < 4)
        return STEP_WAITS;
    size_t length = read_u32(buffer_head(&u->held));
    if (length > LARGEST_ENTRY)
        return outcome(fail_with(SENSELESS));
    if (held < 4 + length)
        return STEP_WAITS;
    if (!entry_read(&u->entry, buffer_head(&u->held) + 4, length))
        return outcome(fail_with(SENSELESS));
    if (!takes_room(u, ROOM_A_NAME) || !make_entry(u))
        return STEP_FAILED;
    used(u, 4 + length);
    u->entries += u->entry.type != ENTRY_UP;
    u->root_done |= u->depth == 1 && u->entry.type != ENTRY_FILE;
    return STEP_DONE;
}

/* A hole at the end is no piece. */
static bool finish_file(struct unpack *u, uint64_t size)
{
    if (size < u->written_to || size > INT64_MAX)
        return fail_with(SENSELESS);
    if (size > u->written_to && ftruncate(u->fd, (off_t)size) != 0)
        return false;
    if (!dress(u, u->fd) || !set_fd_time(u->fd, entry_time(&u->entry)) || !put_in_place(u))
        return false;
    close(u->fd);
    u->fd = -1;
    u->root_done |= u->depth == 1;
    return true;
}

static bool begin_piece(struct unpack *u, uint64_t at, uint32_t length)
{
    if (length == 0)
        return finish_file(u, at);
    if (at < u->written_to || at > (uint64_t)INT64_MAX - length)
        return fail_with(SENSELESS);
    u->piece_at = at;
    u->piece_left = length;
    return true;
}

static enum step take_piece(struct unpack *u)
{
    const uint8_t *head = buffer_head(&u->held);
    if (buffer_length(&u->held) < PIECE_HEADER)
        return STEP_WAITS;
    if (!begin_piece(u, (uint64_t)read_u32(head) << 32 | read_u32(head + 4), read_u32(head + 8)))
        return STEP_FAILED;
    used(u, PIECE_HEADER);
    return STEP_DONE;
}

static enum step take_content(struct unpack *u)
{
    size_t held = buffer_length(&u->held);
    size_t length = held < u->piece_left ? held : u->piece_left;
    if (length == 0)
        return STEP_WAITS;
    if (!takes_room(u, length))
        return STEP_FAILED;
    ssize_t put = pwrite(u->fd, buffer_head(&u->held), length, (off_t)u->piece_at);
    if (put <= 0)
        return outcome(put < 0 ? errno == EINTR : fail_with(EIO));
    used(u, (size_t)put);
    u->piece_at += (uint64_t)put;
    u->piece_left -= (uint32_t)put;
    u->written_to = u->piece_at;
    u->bytes += (uint64_t)put;
    return STEP_DONE;
}

static enum step take_step(struct unpack *u)
{
    if (u->fd < 0)
        return take_entry(u);
    return u->piece_left > 0 ? take_content(u) : take_piece(u);
}

static void send_failure(struct stream *s, struct unpack *u, int error)
{
    give_back(s, u);
    if (u->why[0] != 0)
        send_error(s->id, "no-space", u->why, ENOSPC);
    else if (error == SENSELESS)
        send_invalid(s->id, "what came is no tree");
    else
        send_errno(s->id, "the tree could not be made", error);
    stream_close(s);
}

static void finish(struct stream *s, struct unpack *u)
{
    if (!u->root_done || u->fd >= 0 || u->depth != 1 || buffer_length(&u->held) > 0) {
        send_failure(s, u, SENSELESS);
        return;
    }
    size_t mark = frame_begin(outbox(), REPLY, s->id);
    put_number(outbox(), (int64_t)u->entries);
    put_number(outbox(), (int64_t)u->bytes);
    end_reply(s->id, mark);
    stream_close(s);
}

static bool unpack_pump(struct stream *s)
{
    struct unpack *u = s->state;
    for (int i = 0; i < STEPS_A_PUMP; i++) {
        enum step step = take_step(u);
        if (step == STEP_FAILED) {
            send_failure(s, u, errno);
            return true;
        }
        if (u->owed >= GRANT_SIZE)
            give_back(s, u);
        if (step == STEP_WAITS && u->ended) {
            finish(s, u);
            return true;
        }
        if (step == STEP_WAITS)
            return i > 0;
    }
    return true;
}

static void unpack_data(struct stream *s, const uint8_t *bytes, size_t length)
{
    struct unpack *u = s->state;
    buffer_add(&u->held, bytes, length);
}

static void unpack_eof(struct stream *s)
{
    struct unpack *u = s->state;
    u->ended = true;
}

static void unpack_close(struct stream *s)
{
    struct unpack *u = s->state;
    if (u->fd >= 0)
        close(u->fd);
    if (u->temporary[0] != 0)
        unlinkat(u->last->fd, u->temporary, 0);
    while (u->last != NULL)
        go_out(u);
    buffer_free(&u->held);
    free(u);
}

static const struct stream_kind UNPACK = {
    .data = unpack_data,
    .eof = unpack_eof,
    .pump = unpack_pump,
    .close = unpack_close,
};

static bool cut_slashes(char *path)
{
    size_t length = strlen(path), whole = length;
    while (length > 1 && path[length - 1] == '/')
        path[--length] = 0;
    return length < whole;
}

/* The folder that will hold the root is open, and the root's name there is known. Links are followed. */
static bool open_place(struct unpack *u, char path[PATH_MAX])
{
    struct stat st;
    struct target target;
    u->needs_folder = cut_slashes(path);
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
        u->merges = true;
        return go_in(u, open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), false);
    }
    if (u->options & PUT_PARENTS && !make_parents(path))
        return false;
    if (!target_find(&target, path))
        return false;
    char *slash = strrchr(target.path, '/');
    if (strlen(slash + 1) > NAME_MAX)
        return fail_with(ENAMETOOLONG);
    strcpy(u->name, slash + 1);
    if (!entry_name_is_sound(u->name))
        return fail_with(EINVAL);
    *slash = 0;
    return go_in(u, open(slash == target.path ? "/" : target.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), false);
}

static void start(uint32_t stream, struct unpack *u, char path[PATH_MAX], uint64_t size)
{
    u->fd = -1;
    if (!open_place(u, path)) {
        send_errno(stream, "the place for the tree cannot be opened", errno);
    } else if (!room_for(u->last->fd, size, u->why)) {
        send_error(stream, "no-space", u->why, ENOSPC);
    } else {
        struct stream *s = stream_new(stream, &UNPACK, u);
        if (s != NULL) {
            stream_grant(s, MORE_CREDIT);
            return;
        }
    }
    unpack_close(&(struct stream){.state = u});
}

void do_put(uint32_t stream, struct fields *f)
{
    char path[PATH_MAX];
    uint64_t size;
    struct unpack *u = zeroed(sizeof *u);
    if (!field_path(field_take(f), path, sizeof path))
        send_invalid(stream, "an absolute path is needed");
    else if (!field_options(field_take(f), PUT_OPTIONS, &u->options))
        send_error(stream, "unsupported", "an option this agent does not know", 0);
    else if (!field_number(field_take(f), &size))
        send_invalid(stream, "a size that is no number");
    else {
        start(stream, u, path, size);
        return;
    }
    free(u);
}
