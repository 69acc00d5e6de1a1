#include "target.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

/* As many links as the kernel follows. */
enum { MOST_LINKS = 40, MOST_NAMES = 65536, LARGEST_VALUE = 65536 };

/* `path`, a link, is now what it says: the folder part stays, and with it the meaning of a relative target. */
static bool follow_once(char path[PATH_MAX], const char *target, size_t length)
{
    size_t folder = target[0] == '/' ? 0 : (size_t)(strrchr(path, '/') - path) + 1;
    errno = ENAMETOOLONG;
    if (folder + length >= PATH_MAX)
        return false;
    memcpy(path + folder, target, length);
    path[folder + length] = 0;
    return true;
}

/* realpath(3) fails where nothing is yet, and a dangling link is just that. */
static bool follow(char path[PATH_MAX])
{
    for (int i = 0; i < MOST_LINKS; i++) {
        char target[PATH_MAX];
        ssize_t length = readlink(path, target, sizeof target);
        if (length < 0)
            return errno == EINVAL || errno == ENOENT;
        if (!follow_once(path, target, (size_t)length))
            return false;
    }
    errno = ELOOP;
    return false;
}

/* The links of /proc/PID/fd lead to files whose names may be another file's by now, or nobody's. */
static bool is_name_of(const char *path, const struct stat *st)
{
    struct stat found;
    return lstat(path, &found) == 0 && found.st_dev == st->st_dev && found.st_ino == st->st_ino;
}

/* STATX_ATTR_MOUNT_ROOT, for which musl has no name (Linux 5.8). */
enum { MOUNT_ROOT = 0x2000 };

static bool is_mounted_on(const char *path)
{
    struct statx x;
    return statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, 0, &x) == 0 && (x.stx_attributes & MOUNT_ROOT) != 0;
}

/* A pipe, a device; a file with a second name, which would keep the old content; one that is mounted there; one that
 * another user would own. */
static bool is_irreplaceable(const struct target *t)
{
    return !S_ISREG(t->st.st_mode) || t->st.st_nlink != 1 || !is_name_of(t->path, &t->st) || is_mounted_on(t->path) ||
           (geteuid() != 0 && t->st.st_uid != geteuid());
}

bool target_find(struct target *t, const char *path)
{
    t->exists = stat(path, &t->st) == 0;
    if (!t->exists && errno != ENOENT)
        return false;
    if (t->exists && S_ISDIR(t->st.st_mode)) {
        errno = EISDIR;
        return false;
    }
    strcpy(t->path, path);
    bool named = follow(t->path);
    t->in_place = t->exists && (!named || is_irreplaceable(t));
    if (t->in_place)
        strcpy(t->path, path);
    return named || t->in_place;
}

/* Every write(2), root's too, takes a file's capabilities away: they were given to the old content. */
static bool is_kept(const char *name)
{
    return strcmp(name, "security.capability") != 0;
}

static bool copy_attribute(const char *path, const char *name, int fd)
{
    static char value[LARGEST_VALUE];
    ssize_t length = lgetxattr(path, name, value, sizeof value);
    return length < 0 || fsetxattr(fd, name, value, (size_t)length, 0) == 0;
}

static bool copy_attributes(const char *path, int fd)
{
    static char names[MOST_NAMES];
    ssize_t length = llistxattr(path, names, sizeof names);
    for (ssize_t i = 0; i < length; i += (ssize_t)strlen(names + i) + 1)
        if (is_kept(names + i) && !copy_attribute(path, names + i, fd))
            return false;
    return true;
}

bool target_copy_traits(const struct target *t, int fd)
{
    struct stat now;
    if (fstat(fd, &now) != 0)
        return false;
    bool owned = now.st_uid == t->st.st_uid && now.st_gid == t->st.st_gid;
    return (owned || fchown(fd, t->st.st_uid, t->st.st_gid) == 0) && copy_attributes(t->path, fd);
}
