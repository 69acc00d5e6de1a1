/* REMOVE: one file, or a folder with everything below it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdbool.h>
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

/* How a tree goes. It is walked depth first, and each pump removes a few entries, so that a tree of any size holds up
 * nobody. The walk stands in the last folder of a list, whose first is the one that was asked for:
 *
 *   an entry of the folder    unlinked; a folder that is not empty becomes the last of the list
 *   no entry is left          the walk goes one back, and removes the folder it came from by its name
 *
 * Only descriptors of folders are used, never long paths: a tree may be deeper than a path may be long. And only so
 * many folders are kept open: one further up is closed, and found again through "..", where device and inode tell that
 * it is the same one and nobody moved the tree meanwhile. What is mounted below is not this tree's, be it only another
 * folder of the same file system: it stays, and with it the folder that it is mounted on, which is the answer. */

enum {
    ENTRIES_A_PUMP = 64,
    MOST_OPEN = 64,
};

struct folder {
    struct folder *above;
    /* NULL while it is closed. */
    DIR *entries;
    /* Something was removed since it was read from the start. */
    bool changed;
    dev_t device;
    ino_t inode;
    /* What the folder above calls it. */
    char name[];
};

struct removal {
    /* Where the tree hangs. */
    int parent;
    struct folder *last;
};

static int open_below(int at, const char *name, uint64_t resolve)
{
    int fd = open_folder(at, name, resolve);
    if (fd < 0 && errno == EXDEV)
        errno = EBUSY;
    return fd;
}

static bool go_in(struct removal *r, int fd, const char *name)
{
    struct stat st;
    if (fd < 0)
        return false;
    DIR *entries = fstat(fd, &st) == 0 ? fdopendir(fd) : NULL;
    if (entries == NULL) {
        close(fd);
        return false;
    }
    struct folder *f = zeroed(sizeof *f + strlen(name) + 1);
    *f = (struct folder){.above = r->last, .entries = entries, .device = st.st_dev, .inode = st.st_ino};
    strcpy(f->name, name);
    r->last = f;
    return true;
}

static void shut(struct folder *f)
{
    if (f != NULL && f->entries != NULL)
        closedir(f->entries);
    if (f != NULL)
        f->entries = NULL;
}

static void shut_far_above(const struct removal *r)
{
    struct folder *f = r->last;
    for (int i = 0; f != NULL && i < MOST_OPEN; i++)
        f = f->above;
    shut(f);
}

/* The folder above is open again, through the one below it. */
static bool open_above(const struct folder *f)
{
    struct stat st;
    if (f->above->entries != NULL)
        return true;
    int fd = openat(dirfd(f->entries), "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool same = fstat(fd, &st) == 0 && st.st_dev == f->above->device && st.st_ino == f->above->inode;
    f->above->entries = same ? fdopendir(fd) : NULL;
    if (f->above->entries != NULL)
        return true;
    close(fd);
    errno = same ? errno : EBUSY;
    return false;
}

/* Some file systems pass over entries while others are removed beside them. */
static bool read_again(struct folder *f)
{
    if (errno != ENOTEMPTY || !f->changed)
        return false;
    f->changed = false;
    rewinddir(f->entries);
    return true;
}

static bool go_out(struct removal *r)
{
    struct folder *f = r->last;
    if (f->above != NULL && !open_above(f))
        return false;
    if (unlinkat(f->above != NULL ? dirfd(f->above->entries) : r->parent, f->name, AT_REMOVEDIR) != 0)
        return read_again(f);
    r->last = f->above;
    if (r->last != NULL)
        r->last->changed = true;
    shut(f);
    free(f);
    return true;
}

static bool is_entry(const char *name)
{
    return strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* Whether the entry that could not be unlinked is a folder. EISDIR is Linux's answer for one, EPERM that of POSIX. */
static bool is_folder_at(int at, const char *name)
{
    struct stat st;
    int error = errno;
    bool is =
        (error == EISDIR || error == EPERM) && fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode);
    errno = error;
    return is;
}

static bool remove_entry(struct removal *r, const char *name)
{
    int at = dirfd(r->last->entries);
    if (unlinkat(at, name, 0) == 0) {
        r->last->changed = true;
        return true;
    }
    if (!is_folder_at(at, name))
        return errno == ENOENT;
    shut_far_above(r);
    return go_in(r, open_below(at, name, RESOLVE_NO_XDEV), name) || errno == ENOENT;
}

/* False with errno set when it cannot go on. */
static bool step(struct removal *r)
{
    errno = 0;
    const struct dirent *entry = readdir(r->last->entries);
    if (entry == NULL)
        return errno == 0 && go_out(r);
    return !is_entry(entry->d_name) || remove_entry(r, entry->d_name);
}

static bool removal_pump(struct stream *s)
{
    struct removal *r = s->state;
    for (int i = 0; i < ENTRIES_A_PUMP && r->last != NULL; i++) {
        if (!step(r)) {
            send_errno(s->id, "the folder could not be removed", errno);
            stream_close(s);
            return true;
        }
    }
    if (r->last == NULL) {
        send_done(s->id);
        stream_close(s);
    }
    return true;
}

static void removal_close(struct stream *s)
{
    struct removal *r = s->state;
    while (r->last != NULL) {
        struct folder *f = r->last;
        r->last = f->above;
        shut(f);
        free(f);
    }
    if (r->parent >= 0)
        close(r->parent);
    free(r);
}

static const struct stream_kind REMOVAL = {.pump = removal_pump, .close = removal_close};

/* The folder that holds `path`, whose last name is left in `*name`. Slashes behind it are cut off. */
static int open_parent(char *path, const char **name)
{
    size_t length = strlen(path);
    while (path[length - 1] == '/')
        path[--length] = 0;
    char *slash = strrchr(path, '/');
    *name = slash + 1;
    if (slash == path)
        return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *slash = 0;
    return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static bool start_removal(struct removal *r, char *path)
{
    const char *name;
    r->parent = open_parent(path, &name);
    return r->parent >= 0 && go_in(r, open_below(r->parent, name, 0), name);
}

static void remove_tree(uint32_t stream, char *path)
{
    struct removal *r = zeroed(sizeof *r);
    r->parent = -1;
    if (!start_removal(r, path))
        send_errno(stream, "the folder could not be removed", errno);
    else if (stream_new(stream, &REMOVAL, r) != NULL)
        return;
    removal_close(&(struct stream){.state = r});
}

/* "/a/.." is not what anybody means to remove: it may be the root. */
static bool names_something(const char *path)
{
    size_t length = strlen(path);
    while (length > 0 && path[length - 1] == '/')
        length--;
    size_t start = length;
    while (start > 0 && path[start - 1] != '/')
        start--;
    return length > 0 && strncmp(path + start, "..", length - start) != 0;
}

static bool is_folder(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

void do_remove(uint32_t stream, struct fields *f)
{
    static const char *const OPTIONS[] = {"recursive", NULL};
    char path[PATH_MAX];
    unsigned recursive;
    if (!field_path(field_take(f), path, sizeof path) || !names_something(path))
        send_invalid(stream, "an absolute path that ends with a name is needed");
    else if (!field_options(field_take(f), OPTIONS, &recursive))
        send_error(stream, "unsupported", "an option this agent does not know", 0);
    else if (recursive && is_folder(path))
        remove_tree(stream, path);
    else if (remove(path) != 0)
        send_errno(stream, "the file could not be removed", errno);
    else
        send_done(stream);
}
