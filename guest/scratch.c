#include "scratch.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "fatal.h"
#include "modules.h"
#include "number.h"
#include "path.h"
#include "root.h"

static const char MODULES[] = "/etc/vmfork/scratch-modules";
static const char TARGET[] = "/scratch";
static const char RESCAN[] = "/sys/bus/pci/rescan";
static const char TYPE[] = "ext4";
/* What programs give back is given back to the host. What the host has not written reads as zeros already. */
static const char OPTIONS[] = "discard,noinit_itable";

/* The agent's port is the first of a machine's virtio devices, and there are not more kinds than these. */
enum { DEVICES = 8, DISKS = 2 };

/* Of sysfs, whatever the disk's own are. */
enum { SECTOR = 512 };

/* Virtual I/O Device (VIRTIO), 5: Device Types. */
static bool is_disk(int device)
{
    char path[64], kind[16];
    snprintf(path, sizeof path, "/sys/bus/virtio/devices/virtio%d/device", device);
    read_text(path, kind, sizeof kind);
    return strcmp(kind, "0x0002") == 0;
}

static int count_disks(void)
{
    int count = 0;
    for (int device = 0; device < DEVICES; device++)
        count += is_disk(device);
    return count;
}

/* A root's disk is only read, and this one is written: whichever the kernel found first. */
static bool is_written(const char *name)
{
    char path[64], answer[4];
    snprintf(path, sizeof path, "/sys/block/%s/ro", name);
    read_text(path, answer, sizeof answer);
    return strcmp(answer, "0") == 0;
}

/* What failed, with errno set; NULL where nothing did. */
static const char *mount_disk(const char *name)
{
    char device[16];
    snprintf(device, sizeof device, "/dev/%s", name);
    if (mkdir(TARGET, 0755) != 0 && errno != EEXIST)
        return "no folder /scratch can be made";
    if (mount(device, TARGET, TYPE, MS_NOATIME, OPTIONS) != 0 || chmod(TARGET, 01777) != 0)
        return "the disk cannot be mounted at /scratch";
    return NULL;
}

static const char *find_disk(void)
{
    static const char *const NAMES[DISKS] = {"vda", "vdb"};
    modules_load(MODULES);
    for (int index = 0; index < DISKS; index++)
        if (is_written(NAMES[index]))
            return NAMES[index];
    return NULL;
}

void scratch_mount(void)
{
    if (count_disks() <= (root_upper() >= 0))
        return;
    const char *name = find_disk();
    if (name == NULL)
        fatal("the disk for /scratch was not found");
    const char *failed = mount_disk(name);
    if (failed != NULL)
        fatal_errno(failed);
}

const char *scratch_add(char name[SCRATCH_NAME])
{
    if (!append_text(RESCAN, "1"))
        return "the guest's kernel does not look for new devices";
    const char *found = find_disk();
    if (found == NULL) {
        errno = ENODEV;
        return "the guest has no new disk";
    }
    strcpy(name, found);
    return mount_disk(found);
}

uint64_t scratch_bytes(const char *name)
{
    char path[64], sectors[24];
    uint64_t count;
    snprintf(path, sizeof path, "/sys/block/%s/size", name);
    read_text(path, sectors, sizeof sectors);
    return number_read(sectors, strlen(sectors), 10, UINT64_MAX / SECTOR, &count) ? count * SECTOR : 0;
}
