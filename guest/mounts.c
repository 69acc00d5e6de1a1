#include "mounts.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "fatal.h"
#include "room.h"
#include "root.h"

static const struct {
    const char *type;
    const char *target;
    unsigned long flags;
    const char *options;
    /* An option for kernels that know it; others mount without it. */
    const char *wish;
} MOUNTS[] = {
    {"proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "", ""},
    {"sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, "", ""},
    {"devtmpfs", "/dev", MS_NOSUID, "mode=0755", ""},
    {"devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666", ""},
    {"tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777", ""},
    {"tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755", ""},
    {"tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777", ""},
    /* A process waits 0.4 ms to be taken into a group; without favordynmods 9 to 40 ms (Linux 6.12, TCG). */
    {"cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, "", "favordynmods"},
};

enum { MOUNT_COUNT = sizeof MOUNTS / sizeof *MOUNTS };

static const char *const LINKS[][2] = {
    {"/proc/self/fd", "/dev/fd"},
    {"/proc/self/fd/0", "/dev/stdin"},
    {"/proc/self/fd/1", "/dev/stdout"},
    {"/proc/self/fd/2", "/dev/stderr"},
    {"/run", "/var/run"},
    {"/run/lock", "/var/lock"},
};

/* The kernel's own names; <linux/mount.h> and <sys/mount.h> cannot both be had. */
enum { FSPICK_CLOSE_ON_EXEC = 1, FSPICK_EMPTY = 8, FSCONFIG_STRING = 1, FSCONFIG_RECONFIGURE = 7 };

/* What cannot be told before the console is open. */
static int root_error, mount_errors[MOUNT_COUNT];

/* The kernel's first root can neither be left nor moved, so pivot_root(2), and what builds on it, fails there. The same
 * files bound over it, which copies none, are a mount like any other. The empty folder /proc lends its place. */
static int move_root(void)
{
    bool done = mount("/", "/proc", NULL, MS_BIND, NULL) == 0 && chdir("/proc") == 0 &&
                mount(".", "/", NULL, MS_MOVE, NULL) == 0 && chroot(".") == 0 && chdir("/") == 0;
    return done ? 0 : errno;
}

static int mount_one(int i)
{
    mkdir(MOUNTS[i].target, 0755);
    const char *options = MOUNTS[i].wish[0] != 0 ? MOUNTS[i].wish : MOUNTS[i].options;
    if (mount(MOUNTS[i].type, MOUNTS[i].target, MOUNTS[i].type, MOUNTS[i].flags, options) == 0 || errno == EBUSY)
        return 0;
    if (options == MOUNTS[i].options)
        return errno;
    return mount(MOUNTS[i].type, MOUNTS[i].target, MOUNTS[i].type, MOUNTS[i].flags, MOUNTS[i].options) == 0 ? 0 : errno;
}

/* Packages bring some of them as empty folders, which their scripts would make links of. */
static void make_link(const char *target, const char *path)
{
    rmdir(path);
    (void)!symlink(target, path);
}

void mounts_make(bool can)
{
    mkdir("/proc", 0755);
    root_error = can ? 0 : move_root();
    for (int i = 0; i < MOUNT_COUNT; i++)
        mount_errors[i] = mount_one(i);
    mkdir("/run/lock", 0755);
    chmod("/run/lock", 01777);
    for (size_t i = 0; i < sizeof LINKS / sizeof *LINKS; i++)
        make_link(LINKS[i][0], LINKS[i][1]);
}

void mounts_complain(void)
{
    if (root_error != 0)
        complain("cannot move", "/", root_error);
    for (int i = 0; i < MOUNT_COUNT; i++)
        if (mount_errors[i] != 0)
            complain("cannot mount", MOUNTS[i].target, mount_errors[i]);
}

/* What is written to a root on a disk lies in another file system, which no path leads to. */
static bool is_over_disk(const char *target)
{
    return root_upper() >= 0 && strcmp(target, "/") == 0;
}

static int pick(const char *target)
{
    return is_over_disk(target) ? (int)syscall(SYS_fspick, root_upper(), "", FSPICK_CLOSE_ON_EXEC | FSPICK_EMPTY)
                                : (int)syscall(SYS_fspick, AT_FDCWD, target, FSPICK_CLOSE_ON_EXEC);
}

/* Only its size changes: a remount by mount(2) would drop the options that somebody gave it since. */
static int set_size(const char *target, uint64_t bytes)
{
    char size[24];
    snprintf(size, sizeof size, "%" PRIu64, bytes);
    int fd = pick(target);
    if (fd < 0)
        return errno;
    bool done = syscall(SYS_fsconfig, fd, FSCONFIG_STRING, "size", size, 0) == 0 &&
                syscall(SYS_fsconfig, fd, FSCONFIG_RECONFIGURE, NULL, NULL, 0) == 0;
    int error = done ? 0 : errno;
    close(fd);
    return error;
}

/* A tmpfs is given half of the memory by the kernel that mounts it. The root's files are there already: it gets what is
 * left, but for a tenth, so that a full root says so and does not take the memory that its programs run in. */
static uint64_t wanted_size(const char *target, const struct statfs *fs)
{
    struct sysinfo memory;
    if (strcmp(target, "/") == 0)
        return (fs->f_blocks - fs->f_bfree) * (uint64_t)fs->f_bsize + memory_available() / 10 * 9;
    return sysinfo(&memory) == 0 ? (uint64_t)memory.totalram * memory.mem_unit / 2 : 0;
}

/* An overlay tells the size of what is written to. */
static bool has_size(const char *target, struct statfs *fs)
{
    return statfs(target, fs) == 0 && (fs->f_type == TMPFS_MAGIC || is_over_disk(target));
}

void mounts_limit_root(void)
{
    struct statfs fs;
    if (!has_size("/", &fs))
        return;
    int error = set_size("/", wanted_size("/", &fs));
    if (error != 0)
        complain("cannot limit", "/", error);
}

static void grow(const char *target, void (*tell)(const char *, int, uint64_t))
{
    struct statfs fs;
    if (!has_size(target, &fs))
        return;
    uint64_t size = fs.f_blocks * (uint64_t)fs.f_bsize, wanted = wanted_size(target, &fs);
    int error = wanted > size ? set_size(target, wanted) : 0;
    tell(target, error, wanted > size && error == 0 ? wanted : size);
}

void mounts_grow(void (*tell)(const char *target, int error, uint64_t bytes))
{
    grow("/", tell);
    for (int i = 0; i < MOUNT_COUNT; i++)
        if (strcmp(MOUNTS[i].type, "tmpfs") == 0)
            grow(MOUNTS[i].target, tell);
}
