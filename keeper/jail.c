#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "files.h"

/* How it works. Each step needs rights that a later one gives up: limits, namespaces, the root inside them, the user,
 * and last what capabilities are left. The root is a tmpfs with a mount point for each thing that is bound into it. It
 * is made read-only as a whole, and what was the root before is taken off the process's own table of mounts. */

/* No machine needs more: it has some 20 descriptors, and two for each virtual CPU. */
enum { DESCRIPTORS = 1024, THREADS = 1024 };
/* What it writes is its log, device state (60 to 80 KB), and the disk of a machine that has one. Its RAM is mapped,
 * which no limit counts. */
enum { FILE_MIB = 64 };

/* linux/mount.h: struct mount_attr. That header and sys/mount.h cannot be had together. */
struct attributes {
    uint64_t set, clear, propagation, namespace;
};
enum { ATTRIBUTE_RDONLY = 1, ATTRIBUTE_NOSUID = 2, ATTRIBUTE_NODEV = 4 };

/* Lowers a limit; one that is lower stays. */
static bool limit(int what, rlim_t most)
{
    struct rlimit now;
    if (getrlimit(what, &now) != 0)
        return false;
    if (now.rlim_max < most)
        most = now.rlim_max;
    now.rlim_cur = now.rlim_max = most;
    return setrlimit(what, &now) == 0;
}

static bool write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t size = write(fd, text, strlen(text));
    close(fd);
    return size == (ssize_t)strlen(text);
}

/* In a user namespace of its own a process may map the user that it is, if it gives up changing its groups. */
static bool map_self(unsigned user, unsigned group)
{
    char users[64], groups[64];
    snprintf(users, sizeof users, "%u %u 1\n", user, user);
    snprintf(groups, sizeof groups, "%u %u 1\n", group, group);
    return write_file("/proc/self/setgroups", "deny") && write_file("/proc/self/uid_map", users) &&
           write_file("/proc/self/gid_map", groups);
}

/* Makes the folders above `path`, below the working folder. */
static bool make_parents(char *path)
{
    for (char *slash = strchr(path, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        int made = mkdir(path, 0755);
        *slash = '/';
        if (made != 0 && errno != EEXIST)
            return false;
    }
    return true;
}

/* Binds what is at an absolute `path` to the same path below the working folder. */
static bool bind_below(const char *path)
{
    char below[PATH_MAX];
    struct stat found;
    if (*path != '/' || strlen(path) >= sizeof below) {
        errno = EINVAL;
        return false;
    }
    strcpy(below, path + 1);
    if (stat(path, &found) != 0 || !make_parents(below))
        return false;
    if (S_ISDIR(found.st_mode)) {
        if (mkdir(below, 0755) != 0 && errno != EEXIST)
            return false;
    } else {
        int fd = open(below, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        if (fd < 0)
            return false;
        close(fd);
    }
    return mount(path, below, NULL, MS_BIND, NULL) == 0;
}

static const char *enter_root(const struct jail *jail)
{
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        return "mounts of its own";
    if (mount("vmfork", jail->root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64k,nr_inodes=1024") != 0)
        return "a root of its own";
    if (chdir(jail->root) != 0)
        return "a root of its own";
    for (int index = 0; index < jail->bound_count; index++)
        if (!bind_below(jail->bound[index]))
            return jail->bound[index];
    struct attributes wanted = {.set = ATTRIBUTE_RDONLY | ATTRIBUTE_NOSUID | ATTRIBUTE_NODEV};
    if (syscall(SYS_mount_setattr, AT_FDCWD, ".", AT_RECURSIVE, &wanted, sizeof wanted) != 0)
        return "a read-only root";
    if (syscall(SYS_pivot_root, ".", ".") != 0 || umount2(".", MNT_DETACH) != 0 || chdir("/") != 0)
        return "leaving the old root";
    return NULL;
}

static const char *enter_namespaces(const struct jail *jail)
{
    unsigned user = geteuid(), group = getegid();
    int own = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | (jail->outward ? 0 : CLONE_NEWNET);
    if (unshare(own | (jail->mapped ? CLONE_NEWUSER : 0)) != 0)
        return "namespaces";
    if (jail->mapped && !map_self(user, group))
        return "a user namespace";
    return enter_root(jail);
}

static bool become(long user)
{
    gid_t group = (gid_t)user;
    uid_t id = (uid_t)user;
    return setgroups(0, NULL) == 0 && setresgid(group, group, group) == 0 && setresuid(id, id, id) == 0;
}

/* None can be had again, by starting a program as root neither: there are no new privileges. */
static bool drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];
    memset(none, 0, sizeof none);
    return syscall(SYS_capset, &header, none) == 0;
}

const char *enter_jail(const struct jail *jail)
{
    if (!limit(RLIMIT_CORE, 0) || !limit(RLIMIT_NOFILE, DESCRIPTORS) ||
        !limit(RLIMIT_FSIZE, (rlim_t)(FILE_MIB + jail->file_mib) << 20))
        return "limits";
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return "giving up new privileges";
    const char *failed = jail->root != NULL ? enter_namespaces(jail) : NULL;
    if (failed != NULL)
        return failed;
    if (jail->root == NULL && jail->bound_count > 0 && !open_only(jail->bound, jail->bound_count))
        return "opening only its own files";
    /* The kernel counts the threads of a user. Of one who is also somebody else, the number says nothing. */
    if (jail->user >= 0 && !limit(RLIMIT_NPROC, THREADS))
        return "limits";
    if (jail->user >= 0 && !become(jail->user))
        return "a user of its own";
    return drop_capabilities() ? NULL : "giving up capabilities";
}
