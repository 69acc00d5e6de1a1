#include "path.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mode.h"

bool path_rooted(const char *path, char *out, size_t size)
{
    int length = snprintf(out, size, "%s%s", mode.root, path);
    errno = ENAMETOOLONG;
    return length > 0 && (size_t)length < size;
}

int open_folder(int at, const char *name, uint64_t resolve)
{
    struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, .resolve = resolve};
    return (int)syscall(SYS_openat2, at, name, &how, sizeof how);
}

static bool make_folder(const char *path)
{
    struct stat st;
    if (mkdir(path, 0755) == 0)
        return true;
    if (errno != EEXIST)
        return false;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return true;
    errno = ENOTDIR;
    return false;
}

bool make_folders(const char *path)
{
    char part[PATH_MAX];
    for (const char *slash = path; slash != NULL;) {
        slash = strchr(slash + 1, '/');
        size_t length = slash ? (size_t)(slash - path) : strlen(path);
        if (length >= sizeof part) {
            errno = ENAMETOOLONG;
            return false;
        }
        memcpy(part, path, length);
        part[length] = 0;
        if (!make_folder(part))
            return false;
    }
    return true;
}

bool make_parents(const char *path)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (slash == NULL || slash == path)
        return true;
    snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path);
    return make_folders(folder);
}

bool beside(const char *path, char *out, size_t size)
{
    static unsigned count;
    const char *slash = strrchr(path, '/');
    int folder = slash ? (int)(slash - path) + 1 : 0;
    int length = snprintf(out, size, "%.*s.vmfork-%d-%u", folder, path, (int)getpid(), count++);
    if (length >= 0 && (size_t)length < size)
        return true;
    errno = ENAMETOOLONG;
    return false;
}

static bool write_all(int fd, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t put = write(fd, bytes, length);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return false;
        bytes += put;
        length -= (size_t)put;
    }
    return true;
}

bool replace_file(const char *path, const void *bytes, size_t length, unsigned mode)
{
    char temporary[PATH_MAX];
    if (!beside(path, temporary, sizeof temporary))
        return false;
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    bool done = write_all(fd, bytes, length) && fchmod(fd, mode) == 0 && rename(temporary, path) == 0;
    int error = errno;
    close(fd);
    if (!done)
        unlink(temporary);
    errno = error;
    return done;
}

/* Whether what is open is what `replace_file` would make of as many bytes, but for these. */
static bool is_alike(int fd, size_t length, unsigned mode)
{
    struct stat is;
    return fstat(fd, &is) == 0 && S_ISREG(is.st_mode) && is.st_nlink == 1 && is.st_uid == geteuid() &&
           (is.st_mode & 07777) == mode && is.st_size == (off_t)length;
}

bool renew_file(const char *path, const void *bytes, size_t length, unsigned mode)
{
    int fd = open(path, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    bool done = fd >= 0 && is_alike(fd, length, mode) && write_all(fd, bytes, length);
    if (fd >= 0)
        close(fd);
    return done || replace_file(path, bytes, length, mode);
}

static bool write_into(const char *path, int flags, const void *bytes, size_t length)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC | flags);
    if (fd < 0)
        return false;
    bool done = write_all(fd, bytes, length);
    int error = errno;
    close(fd);
    errno = error;
    return done;
}

bool overwrite_file(const char *path, const void *bytes, size_t length)
{
    return write_into(path, 0, bytes, length);
}

/* The file is no longer than that; one that is not is left alone. */
static bool shorten(int fd, size_t length)
{
    struct stat is;
    return fstat(fd, &is) == 0 && (is.st_size <= (off_t)length || ftruncate(fd, (off_t)length) == 0);
}

bool rewrite_file(const char *path, const void *bytes, size_t length)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        return false;
    bool done = write_all(fd, bytes, length) && shorten(fd, length);
    int error = errno;
    close(fd);
    errno = error;
    return done;
}

bool append_text(const char *path, const char *text)
{
    return write_into(path, O_APPEND, text, strlen(text));
}

void read_text(const char *path, char *out, size_t size)
{
    out[0] = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t got = read(fd, out, size - 1);
    close(fd);
    if (got < 0)
        got = 0;
    if (got > 0 && out[got - 1] == '\n')
        got--;
    out[got] = 0;
}
