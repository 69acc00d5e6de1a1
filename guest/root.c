#include "root.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fatal.h"
#include "path.h"

/* One word: the file system on the disk. */
static const char TOLD[] = "/etc/vmfork/root";
static const char DISK[] = "/dev/vda";

static const char LOWER[] = "/lower", UPPER[] = "/upper", FILES[] = "/upper/files", WORK[] = "/upper/work",
                  ROOT[] = "/root";
/* With redirect_dir a folder of the disk can be renamed, as in any other root. */
static const char LAYERS[] = "lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work,redirect_dir=on";

static int upper = -1;

static void make(const char *path)
{
    if (mkdir(path, 0755) != 0 && errno != EEXIST)
        fatal_errno(path);
}

static void mount_at(const char *target, const char *source, const char *type, unsigned long flags, const char *options)
{
    make(target);
    if (mount(source, target, type, flags, options) != 0 && errno != EBUSY)
        fatal_errno(target);
}

/* The kernel's own file systems are mounted again in the new root, where they belong. */
static void enter(void)
{
    umount2("/sys", MNT_DETACH);
    umount2("/dev", MNT_DETACH);
    if (chdir(ROOT) != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0)
        fatal_errno("the root on the disk cannot be entered");
}

bool root_from_disk(void (*prepare)(void))
{
    char type[16];
    if (access(TOLD, F_OK) != 0)
        return false;
    mount_at("/dev", "devtmpfs", "devtmpfs", MS_NOSUID, "mode=0755");
    mount_at("/sys", "sysfs", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
    prepare();
    read_text(TOLD, type, sizeof type);
    mount_at(LOWER, DISK, type, MS_RDONLY, "");
    mount_at(UPPER, "tmpfs", "tmpfs", 0, "mode=0755,nr_inodes=0");
    make(FILES);
    make(WORK);
    mount_at(ROOT, "overlay", "overlay", 0, LAYERS);
    upper = open(UPPER, O_PATH | O_CLOEXEC);
    enter();
    return true;
}

int root_upper(void)
{
    return upper;
}
