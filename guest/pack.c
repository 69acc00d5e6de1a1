/* GET: a tree of the guest's, sent as it is read. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "answer.h"
#include "entry.h"
#include "links.h"
#include "memory.h"
#include "operation.h"
#include "path.h"
#include "stream.h"

/* How a tree is sent. It is walked depth first, with one descriptor for each folder on the way, and each pump makes a
 * few entries, or pieces of a file, behind what is held already; then as much goes out as the credit allows.
 *
 * What changes meanwhile is sent as it is met: a name that is gone is left out, a file that shrinks ends earlier, and
 * one that grows ends where it did at first. What is mounted below is not this tree's. */

enum { GET_NAMES = 1 };

static const char *const GET_OPTIONS[] = {"names", NULL};

/* An entry takes some 50 us under emulation. */
enum { STEPS_A_PUMP = 64, LARGEST_PIECE = 65536, LARGE_CONTENT = 65536 };

struct folder {
    struct folder *above;
    DIR *entries;
    /* How long the path was before its name. */
    size_t path_length;
};

struct pack {
    bool names_only;
    struct buffer held;
    bool ended;
    struct folder *last;
    unsigned depth;
    /* From the root to the last folder, with a slash at the end; empty in the root. */
    char path[PATH_MAX];
    struct links links;
    /* The file that is sent, or -1. */
    int fd;
    uint64_t at;
    /* Where the bytes at `at` end: at a hole, or the end. */
    uint64_t extent_end;
    uint64_t size;
    /* It may have holes. */
    bool sparse;
    uint64_t entries;
    uint64_t bytes;
};

static bool fail_with(int error)
{
    errno = error;
    return false;
}

static bool is_gone(int error)
{
    return error == ENOENT || error == ENXIO;
}

static void put_entry(struct pack *p, enum entry_type type, const char *name, const struct stat *st, const char *target)
{
    entry_put(&p->held, type, name, st, target);
    p->entries++;
}

static void end_file(struct pack *p, uint64_t size)
{
    entry_put_piece(&p->held, size, 0);
    close(p->fd);
    p->fd = -1;
}

/* Where the next bytes are. False behind the last of them. */
static bool find_extent(struct pack *p)
{
    off_t data = p->sparse ? lseek(p->fd, (off_t)p->at, SEEK_DATA) : (off_t)p->at;
    if (data < 0)
        return false;
    off_t hole = p->sparse ? lseek(p->fd, data, SEEK_HOLE) : -1;
    p->at = (uint64_t)data;
    p->extent_end = hole < 0 || (uint64_t)hole > p->size ? p->size : (uint64_t)hole;
    return p->at < p->extent_end;
}

/* The files of /proc have no size: they are read to their end. */
static bool send_piece(struct pack *p)
{
    if (p->at >= p->extent_end && p->size > 0 && !find_extent(p)) {
        end_file(p, p->size);
        return true;
    }
    uint64_t left = p->size > 0 ? p->extent_end - p->at : LARGEST_PIECE;
    size_t limit = left < LARGEST_PIECE ? (size_t)left : LARGEST_PIECE;
    size_t mark = buffer_length(&p->held);
    entry_put_piece(&p->held, p->at, 0);
    ssize_t got = pread(p->fd, buffer_room(&p->held, limit), limit, (off_t)p->at);
    if (got <= 0) {
        buffer_truncate(&p->held, mark);
        if (got == 0)
            end_file(p, p->at);
        return got == 0 || errno == EINTR;
    }
    write_u32(buffer_head(&p->held) + mark + PIECE_HEADER - 4, (uint32_t)got);
    buffer_grow(&p->held, (size_t)got);
    p->at += (uint64_t)got;
    p->bytes += (uint64_t)got;
    return true;
}

static void send_content(struct pack *p, int fd, const struct stat *st)
{
    p->fd = fd;
    p->at = p->extent_end = 0;
    p->size = (uint64_t)st->st_size;
    p->sparse = (uint64_t)st->st_blocks * 512 < p->size;
}

/* The path of `name` from the root on. False where it is longer than a path can be. */
static bool path_of(const struct pack *p, const char *name, char out[PATH_MAX])
{
    int length = snprintf(out, PATH_MAX, "%s%s", p->path, name);
    return (length > 0 && length < PATH_MAX) || fail_with(ENAMETOOLONG);
}

/* Whether only its first name need be told. */
static const char *met_before(struct pack *p, const char *name, const struct stat *st)
{
    char path[PATH_MAX];
    if (p->depth == 0 || st->st_nlink < 2 || !path_of(p, name, path))
        return NULL;
    return links_meet(&p->links, st->st_dev, st->st_ino, path);
}

static void send_file(struct pack *p, int fd, const char *name, const struct stat *st)
{
    const char *first = met_before(p, name, st);
    if (first != NULL) {
        put_entry(p, ENTRY_HARD, name, st, first);
        close(fd);
    } else {
        put_entry(p, ENTRY_FILE, name, st, st->st_nlink > 1 ? "shared" : "");
        send_content(p, fd, st);
    }
}

static bool go_in(struct pack *p, int fd, const char *name, const struct stat *st)
{
    size_t length = strlen(p->path), added = p->depth > 0 ? strlen(name) + 1 : 0;
    DIR *entries = NULL;
    if (p->depth == MOST_DEPTH || length + added >= PATH_MAX)
        errno = ENAMETOOLONG;
    else
        entries = fdopendir(fd);
    if (entries == NULL) {
        int error = errno;
        close(fd);
        return fail_with(error);
    }
    put_entry(p, ENTRY_DIR, name, st, "");
    if (added > 0)
        snprintf(p->path + length, PATH_MAX - length, "%s/", name);
    struct folder *f = zeroed(sizeof *f);
    *f = (struct folder){.above = p->last, .entries = entries, .path_length = length};
    p->last = f;
    p->depth++;
    return true;
}

static void go_out(struct pack *p)
{
    struct folder *f = p->last;
    p->last = f->above;
    p->path[f->path_length] = 0;
    p->depth--;
    closedir(f->entries);
    free(f);
}

static bool send_link(struct pack *p, int at, const char *name, const struct stat *st)
{
    char target[PATH_MAX];
    ssize_t length = readlinkat(at, name, target, sizeof target - 1);
    if (length < 0)
        return is_gone(errno) || errno == EINVAL;
    target[length] = 0;
    put_entry(p, ENTRY_LINK, name, st, target);
    return true;
}

static bool send_mount(struct pack *p, const char *name, const struct stat *st)
{
    put_entry(p, p->names_only ? ENTRY_DIR : ENTRY_OTHER, name, st, "");
    if (p->names_only)
        entry_put_up(&p->held);
    return true;
}

static bool send_folder(struct pack *p, int at, const char *name, struct stat *st)
{
    int fd = open_folder(at, name, RESOLVE_NO_XDEV);
    if (fd < 0)
        return errno == EXDEV ? send_mount(p, name, st) : is_gone(errno) || errno == ENOTDIR;
    if (fstat(fd, st) == 0)
        return go_in(p, fd, name, st);
    close(fd);
    return false;
}

/* It may be another file by now. */
static bool send_regular(struct pack *p, int at, const char *name, struct stat *st)
{
    int fd = openat(at, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return is_gone(errno) || errno == ELOOP;
    if (fstat(fd, st) == 0 && S_ISREG(st->st_mode))
        send_file(p, fd, name, st);
    else
        close(fd);
    return true;
}

static void name_only(struct pack *p, const char *name, const struct stat *st)
{
    put_entry(p, S_ISREG(st->st_mode) ? ENTRY_FILE : ENTRY_OTHER, name, st, "");
}

static bool send_entry(struct pack *p, const struct dirent *entry)
{
    int at = dirfd(p->last->entries);
    const char *name = entry->d_name;
    struct stat st;
    if (entry->d_type == DT_REG && !p->names_only)
        return send_regular(p, at, name, &st);
    if (fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return is_gone(errno);
    if (S_ISDIR(st.st_mode))
        return send_folder(p, at, name, &st);
    if (S_ISLNK(st.st_mode))
        return send_link(p, at, name, &st);
    if (S_ISREG(st.st_mode) && !p->names_only)
        return send_regular(p, at, name, &st);
    name_only(p, name, &st);
    return true;
}

static bool read_folder(struct pack *p)
{
    errno = 0;
    const struct dirent *entry = readdir(p->last->entries);
    if (entry != NULL)
        return !entry_name_is_sound(entry->d_name) || send_entry(p, entry);
    if (errno != 0)
        return false;
    entry_put_up(&p->held);
    go_out(p);
    return true;
}

static bool send_step(struct pack *p)
{
    if (p->fd >= 0)
        return send_piece(p);
    if (p->last != NULL)
        return read_folder(p);
    p->ended = true;
    return true;
}

static void finish(struct stream *s, const struct pack *p)
{
    size_t mark = frame_begin(outbox(), REPLY, s->id);
    put_number(outbox(), (int64_t)p->entries);
    put_number(outbox(), (int64_t)p->bytes);
    end_reply(s->id, mark);
    stream_close(s);
}

/* The bytes of a large file go from the file straight into the frame: through `held`, 200 MB took twice as long. What
 * is held goes before them, in a frame of its own. */
static bool has_large_content(const struct pack *p)
{
    return p->fd >= 0 && p->size >= p->at + LARGE_CONTENT;
}

/* False where that cannot be, or the piece is none. */
static bool send_straight(struct stream *s, struct pack *p, size_t limit)
{
    if (!has_large_content(p) || buffer_length(&p->held) > 0 || limit <= PIECE_HEADER)
        return false;
    if (p->at >= p->extent_end && !find_extent(p))
        return false;
    size_t most = limit - PIECE_HEADER;
    size_t length = p->extent_end - p->at < most ? (size_t)(p->extent_end - p->at) : most;
    struct buffer *out = outbox();
    size_t mark = frame_begin(out, DATA, s->id);
    put_u8(out, CHANNEL_CONTENT);
    size_t piece = buffer_length(out);
    entry_put_piece(out, p->at, 0);
    ssize_t got = pread(p->fd, buffer_room(out, length), length, (off_t)p->at);
    if (got <= 0) {
        buffer_truncate(out, mark);
        return false;
    }
    write_u32(buffer_head(out) + piece + PIECE_HEADER - 4, (uint32_t)got);
    buffer_grow(out, (size_t)got);
    frame_end(out, mark);
    s->credit[CHANNEL_CONTENT] -= (uint64_t)got + PIECE_HEADER;
    p->at += (uint64_t)got;
    p->bytes += (uint64_t)got;
    return true;
}

static bool pack_pump(struct stream *s)
{
    struct pack *p = s->state;
    size_t limit = stream_allowance(s, CHANNEL_CONTENT);
    if (send_straight(s, p, limit))
        return true;
    for (int i = 0; i < STEPS_A_PUMP && !p->ended && buffer_length(&p->held) < limit; i++) {
        if (has_large_content(p) && buffer_length(&p->held) > 0)
            break;
        if (!send_step(p)) {
            send_errno(s->id, "the tree could not be read", errno);
            stream_close(s);
            return true;
        }
    }
    if (p->ended && buffer_length(&p->held) == 0) {
        finish(s, p);
        return true;
    }
    if (limit == 0)
        return false;
    size_t length = buffer_length(&p->held) < limit ? buffer_length(&p->held) : limit;
    if (length > 0)
        stream_send(s, CHANNEL_CONTENT, buffer_head(&p->held), length);
    buffer_take(&p->held, length);
    return true;
}

static void pack_close(struct stream *s)
{
    struct pack *p = s->state;
    if (p->fd >= 0)
        close(p->fd);
    while (p->last != NULL)
        go_out(p);
    links_free(&p->links);
    buffer_free(&p->held);
    free(p);
}

static const struct stream_kind PACK = {.pump = pack_pump, .close = pack_close};

/* What the caller names is its to choose, so a link is followed. */
static bool open_root(struct pack *p, const char *path, const char *name)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return false;
    if (fstat(fd, &st) == 0) {
        if (S_ISDIR(st.st_mode))
            return go_in(p, fd, name, &st);
        if (S_ISREG(st.st_mode) && !p->names_only) {
            send_file(p, fd, name, &st);
            return true;
        }
        errno = p->names_only ? ENOTDIR : EINVAL;
    }
    int error = errno;
    close(fd);
    return fail_with(error);
}

/* The last name of the path; "root" where it has none, such as "/" and "/a/..". */
static void name_of(const char *path, char out[NAME_MAX + 1])
{
    size_t end = strlen(path);
    while (end > 0 && path[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    snprintf(out, NAME_MAX + 1, "%.*s", (int)(end - begin), path + begin);
    if (!entry_name_is_sound(out))
        strcpy(out, "root");
}

void do_get(uint32_t stream, struct fields *f)
{
    char path[PATH_MAX], name[NAME_MAX + 1];
    unsigned options;
    if (!field_path(field_take(f), path, sizeof path)) {
        send_invalid(stream, "an absolute path is needed");
        return;
    }
    if (!field_options(field_take(f), GET_OPTIONS, &options)) {
        send_error(stream, "unsupported", "an option this agent does not know", 0);
        return;
    }
    struct pack *p = zeroed(sizeof *p);
    p->fd = -1;
    p->names_only = (options & GET_NAMES) != 0;
    name_of(path, name);
    if (!open_root(p, path, name))
        send_errno(stream, "the tree cannot be opened for reading", errno);
    else if (stream_new(stream, &PACK, p) != NULL)
        return;
    pack_close(&(struct stream){.state = p});
}
