/* Loaded into an emulator before its own libraries. It opens what the emulator was passed, by the name that the
 * emulator knows it by. See README.md. */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "descriptor.h"
#include "piece.h"
#include "visible.h"

/* How it works. A path that names an open descriptor is answered with a copy of that descriptor, so with the rights it
 * was opened with and no others, and without /proc. The copy stands at the beginning of the file: the kernel keeps one
 * position for all copies. `@` and a number behind it say where in the file what is mapped of the copy begins. Every
 * other path goes to the kernel as it is. */

static const char PASSED[] = "/proc/self/fd/";
static const char KVM[] = "/dev/kvm";
static const char KVM_VARIABLE[] = "VMFORK_KVM_FD";

/* What `text` says behind a descriptor: where its piece of memory begins. -1 for anything but that. */
static off_t read_start(const char *text)
{
    char *end;
    if (*text == 0)
        return 0;
    long long start = strtoll(text + 1, &end, 10);
    return *text == '@' && *end == 0 && start >= 0 ? start : -1;
}

/* The descriptor that a path stands for, or -1. */
static int find_passed(const char *path, off_t *start)
{
    const char *rest;
    *start = 0;
    if (strncmp(path, PASSED, sizeof PASSED - 1) == 0) {
        int passed = read_leading(path + sizeof PASSED - 1, &rest);
        return passed < 0 || (*start = read_start(rest)) < 0 ? -1 : passed;
    }
    const char *kvm = strcmp(path, KVM) == 0 ? getenv(KVM_VARIABLE) : NULL;
    return kvm == NULL ? -1 : read_descriptor(kvm);
}

static int open_any(const char *path, int flags, mode_t mode)
{
    off_t start;
    int passed = find_passed(path, &start);
    if (passed < 0)
        return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    int copy = fcntl(passed, flags & O_CLOEXEC ? F_DUPFD_CLOEXEC : F_DUPFD, 3);
    if (copy >= 0)
        lseek(copy, 0, SEEK_SET);
    if (copy >= 0 && start > 0)
        piece_note(copy, start);
    return copy;
}

VISIBLE int open(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    /* O_TMPFILE holds O_DIRECTORY, with which no mode is passed. */
    int makes = (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
    mode_t mode = makes ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open_any(path, flags, mode);
}

/* What a libc calls it where files are large, and where it was compiled with checks (glibc, _FORTIFY_SOURCE). */
VISIBLE int open64(const char *path, int flags, ...) __attribute__((alias("open")));

VISIBLE int __open_2(const char *path, int flags)
{
    return open_any(path, flags, 0);
}

VISIBLE int __open64_2(const char *path, int flags) __attribute__((alias("__open_2")));

/* fopen(3): "r", "w" or "a", and then "+", "e", "x" and others in any order. */
static int read_mode(const char *mode)
{
    int flags = *mode == 'w' ? O_CREAT | O_TRUNC : *mode == 'a' ? O_CREAT | O_APPEND : 0;
    flags |= strchr(mode, '+') != NULL ? O_RDWR : *mode == 'r' ? O_RDONLY : O_WRONLY;
    flags |= strchr(mode, 'x') != NULL ? O_EXCL : 0;
    return strchr(mode, 'e') != NULL ? flags | O_CLOEXEC : flags;
}

VISIBLE FILE *fopen(const char *path, const char *mode)
{
    int fd = open_any(path, read_mode(mode), 0666);
    FILE *file = fd < 0 ? NULL : fdopen(fd, mode);
    if (file == NULL && fd >= 0)
        close(fd);
    return file;
}

VISIBLE FILE *fopen64(const char *path, const char *mode) __attribute__((alias("fopen")));
