/* STAT, LIST and MKDIR: names of files. */
#include <dirent.h>
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
#include "stream.h"

static const char *type_name(const struct stat *st)
{
    switch (st->st_mode & S_IFMT) {
    case S_IFREG:
        return "file";
    case S_IFDIR:
        return "dir";
    case S_IFLNK:
        return "link";
    default:
        return "other";
    }
}

static int64_t changed_ns(const struct stat *st)
{
    return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
}

static void put_stat(struct buffer *out, const struct stat *st)
{
    put_text(out, type_name(st));
    put_octal(out, st->st_mode & 07777);
    put_number(out, st->st_size);
    put_number(out, changed_ns(st));
}

static void put_link_target(struct buffer *out, const char *path, const struct stat *st)
{
    char target[PATH_MAX];
    ssize_t length = S_ISLNK(st->st_mode) ? readlink(path, target, sizeof target) : 0;
    put_field(out, target, length > 0 ? (size_t)length : 0);
}

void do_stat(uint32_t stream, struct fields *f)
{
    char path[PATH_MAX];
    struct stat st;
    if (!field_path(field_take(f), path, sizeof path)) {
        send_invalid(stream, "an absolute path is needed");
        return;
    }
    if (lstat(path, &st) != 0) {
        send_errno(stream, "the file cannot be looked at", errno);
        return;
    }
    size_t mark = frame_begin(outbox(), REPLY, stream);
    put_stat(outbox(), &st);
    put_number(outbox(), st.st_uid);
    put_number(outbox(), st.st_gid);
    put_link_target(outbox(), path, &st);
    end_reply(stream, mark);
}

/* To look at one entry takes 30 us under emulation. */
enum { ENTRIES_A_PUMP = 256 };

struct listing {
    DIR *folder;
    bool ended;
    uint64_t entries;
    /* Entries made but not sent: one may be larger than the credit at hand. */
    struct buffer held;
};

static bool is_entry(const char *name)
{
    return strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static void listing_read(struct listing *l)
{
    const struct dirent *entry = readdir(l->folder);
    struct stat st;
    if (entry == NULL) {
        l->ended = true;
        return;
    }
    /* An entry may be gone by now. */
    if (!is_entry(entry->d_name) || fstatat(dirfd(l->folder), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return;
    put_text(&l->held, entry->d_name);
    put_stat(&l->held, &st);
    l->entries++;
}

static void listing_finish(struct stream *s, const struct listing *l)
{
    size_t mark = frame_begin(outbox(), REPLY, s->id);
    put_number(outbox(), (int64_t)l->entries);
    end_reply(s->id, mark);
    stream_close(s);
}

static bool listing_pump(struct stream *s)
{
    struct listing *l = s->state;
    size_t limit = stream_allowance(s, CHANNEL_CONTENT);
    for (int i = 0; i < ENTRIES_A_PUMP && !l->ended && buffer_length(&l->held) < limit; i++)
        listing_read(l);
    if (l->ended && buffer_length(&l->held) == 0) {
        listing_finish(s, l);
        return true;
    }
    if (limit == 0)
        return false;
    size_t length = buffer_length(&l->held) < limit ? buffer_length(&l->held) : limit;
    stream_send(s, CHANNEL_CONTENT, buffer_head(&l->held), length);
    buffer_take(&l->held, length);
    return true;
}

static void listing_close(struct stream *s)
{
    struct listing *l = s->state;
    closedir(l->folder);
    buffer_free(&l->held);
    free(l);
}

static const struct stream_kind LISTING = {.pump = listing_pump, .close = listing_close};

void do_list(uint32_t stream, struct fields *f)
{
    char path[PATH_MAX];
    if (!field_path(field_take(f), path, sizeof path)) {
        send_invalid(stream, "an absolute path is needed");
        return;
    }
    DIR *folder = opendir(path);
    if (folder == NULL) {
        send_errno(stream, "the folder cannot be read", errno);
        return;
    }
    struct listing *l = zeroed(sizeof *l);
    l->folder = folder;
    if (stream_new(stream, &LISTING, l) == NULL)
        listing_close(&(struct stream){.state = l});
}

static bool is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* mkdir(2) subtracts the umask; the mode that was asked for is meant. */
static bool make_folder(const char *path, unsigned mode, bool parents)
{
    if (parents && is_folder(path))
        return true;
    if (parents && !make_parents(path))
        return false;
    return mkdir(path, mode) == 0 && chmod(path, mode) == 0;
}

void do_mkdir(uint32_t stream, struct fields *f)
{
    static const char *const OPTIONS[] = {"parents", NULL};
    char path[PATH_MAX];
    unsigned mode, parents;
    if (!field_path(field_take(f), path, sizeof path) || !field_mode(field_take(f), &mode))
        send_invalid(stream, "an absolute path and a mode are needed");
    else if (!field_options(field_take(f), OPTIONS, &parents))
        send_error(stream, "unsupported", "an option this agent does not know", 0);
    else if (!make_folder(path, mode, parents))
        send_errno(stream, "the folder could not be made", errno);
    else
        send_done(stream);
}
