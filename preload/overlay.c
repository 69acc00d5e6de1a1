/* The memory of a fork of a running machine: its template's file, and over it the pages that the machine had for
 * itself. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "descriptor.h"
#include "piece.h"
#include "visible.h"

/* How it works. QEMU maps the file of its RAM once, privately. Over that mapping come those of each run of the other
 * file that holds data, at the same places: what was a hole there shows the file below. Memory that was added to the
 * machine lies behind that in the other file, or in the only one, and is mapped from there alone. */

static int upper = -1;
static struct stat lower;

__attribute__((constructor)) static void find_layers(void)
{
    const char *text = getenv("VMFORK_LAYERS"), *rest;
    int number = text == NULL ? -1 : read_leading(text, &rest);
    if (number < 0 || *rest != ',' || fstat(number, &lower) != 0)
        return;
    upper = read_descriptor(rest + 1);
}

static bool is_lower(int fd, int flags)
{
    struct stat found;
    return upper >= 0 && fd >= 0 && (flags & MAP_PRIVATE) != 0 && fstat(fd, &found) == 0 &&
           found.st_dev == lower.st_dev && found.st_ino == lower.st_ino;
}

static void *map(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}

static bool cover(char *mapped, off_t offset, size_t length, int protection, int flags)
{
    off_t last = offset + (off_t)length, at, end = offset;
    while (end < last && (at = lseek(upper, end, SEEK_DATA)) >= 0 && at < last) {
        end = lseek(upper, at, SEEK_HOLE);
        if (end > last)
            end = last;
        void *piece = mapped + (at - offset);
        if (end < 0 || map(piece, (size_t)(end - at), protection, flags | MAP_FIXED, upper, at) == MAP_FAILED)
            return false;
    }
    return end >= last || at >= 0 || errno == ENXIO;
}

VISIBLE void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    if (fd >= 0 && (flags & MAP_PRIVATE) != 0)
        offset += piece_start(fd);
    char *mapped = map(address, length, protection, flags, fd, offset);
    if (mapped == MAP_FAILED || !is_lower(fd, flags))
        return mapped;
    if (cover(mapped, offset, length, protection, flags))
        return mapped;
    /* Half of it would be another machine's memory. */
    munmap(mapped, length);
    errno = ENOMEM;
    return MAP_FAILED;
}

VISIBLE void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));
