#include "room.h"

#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/statfs.h>
#include <sys/sysinfo.h>

#include "number.h"
#include "path.h"

enum {
    KIB = 1024,
    MIB = 1024 * KIB,
    /* What a file in memory must leave: a shell, and the pages the kernel keeps for itself. */
    LEFT_FREE = 12 * MIB,
};

uint64_t memory_available(void)
{
    char text[2048];
    read_text("/proc/meminfo", text, sizeof text);
    const char *line = strstr(text, "\nMemAvailable:");
    uint64_t kib;
    if (line == NULL)
        return UINT64_MAX;
    line += strcspn(line, "0123456789");
    return number_read(line, strspn(line, "0123456789"), 10, UINT64_MAX / KIB, &kib) ? kib * KIB : UINT64_MAX;
}

/* Looks at what is free without more first: the whole answer is made of sums over all of memory, and a fork that asks
 * for the first time waits while they are emulated. */
static uint64_t memory_left(uint64_t wanted)
{
    struct sysinfo now;
    uint64_t left = sysinfo(&now) == 0 ? (uint64_t)now.freeram * now.mem_unit : 0;
    if (left < wanted + 2 * LEFT_FREE)
        left = memory_available();
    return left > LEFT_FREE ? left - LEFT_FREE : 0;
}

/* An overlay is what a root on a disk is: what is written to it lies in a tmpfs. */
static bool lies_in_memory(const struct statfs *fs)
{
    return fs->f_type == TMPFS_MAGIC || fs->f_type == RAMFS_MAGIC || fs->f_type == OVERLAYFS_SUPER_MAGIC;
}

/* Of a file system that tells no size, such as ramfs, the memory alone counts. */
static uint64_t room_left(const struct statfs *fs, uint64_t wanted)
{
    uint64_t own = fs->f_blocks > 0 ? (uint64_t)fs->f_bavail * (uint64_t)fs->f_bsize : UINT64_MAX;
    uint64_t memory = lies_in_memory(fs) && own >= wanted ? memory_left(wanted) : UINT64_MAX;
    return memory < own ? memory : own;
}

bool room_for(int fd, uint64_t bytes, char why[ROOM_TEXT])
{
    struct statfs fs;
    if (fstatfs(fd, &fs) != 0)
        return true;
    uint64_t left = room_left(&fs, bytes);
    if (bytes <= left)
        return true;
    snprintf(why, ROOM_TEXT, "%" PRIu64 " bytes do not fit, there is room for %" PRIu64, bytes, left);
    return false;
}
