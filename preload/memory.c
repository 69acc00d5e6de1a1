/* What a copy of the machine is made by, handed to the keeper before the emulator begins. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../keeper/message.h"
#include "descriptor.h"

/* How it works. The keeper has put the process's folder of /proc into the socket before the program was started: it is
 * not in the program's root. What is opened through it belongs to the process as it is now, and whoever has the
 * descriptors needs no right over it. A process may always open its own. All of it is closed again here: the folder
 * would lead out of the root. Whatever this host refuses is left out, and the keeper tries it itself. */

/* Linux 6.1 (USER_MODE_ONLY: 5.11) and 6.7; what a libc has is older. */
enum { USER_MODE_ONLY = 1, FEATURE_WP_SHMEM = 1 << 12, FEATURE_WP_UNPOPULATED = 1 << 13, FEATURE_WP_ASYNC = 1 << 15 };
enum { THE_MEMORY, THE_PAGEMAP, THE_FAULTS, DESCRIPTORS };

static int receive_folder(int line)
{
    uint8_t sign;
    int passed[PASSED_LIMIT];
    int count = receive_opened(line, &sign, passed);
    if (count > 1)
        close_all(passed + 1, count - 1);
    return count > 0 ? passed[0] : -1;
}

/* A kernel that tells of faults alone is of no use: whoever waits for an answer would stand still. */
static int open_faults(void)
{
    struct uffdio_api api = {.api = UFFD_API};
    api.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_SHMEM | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC;
    int faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | USER_MODE_ONLY);
    if (faults >= 0 && ioctl(faults, UFFDIO_API, &api) != 0) {
        close(faults);
        return -1;
    }
    return faults;
}

static void send_all(int line, const int *opened)
{
    uint8_t which = 0;
    int passed[DESCRIPTORS], count = 0;
    for (int index = 0; index < DESCRIPTORS; index++) {
        if (opened[index] < 0)
            continue;
        which |= (uint8_t)(1 << index);
        passed[count++] = opened[index];
    }
    send_opened(line, which, passed, count);
}

__attribute__((constructor)) static void hand_over(void)
{
    const char *text = getenv("VMFORK_KEEPER_FD");
    int line = text == NULL ? -1 : read_descriptor(text);
    int opened[DESCRIPTORS] = {-1, -1, -1};
    if (line < 0)
        return;
    int folder = receive_folder(line);
    if (folder >= 0) {
        opened[THE_MEMORY] = openat(folder, "mem", O_RDONLY | O_CLOEXEC);
        opened[THE_PAGEMAP] = openat(folder, "pagemap", O_RDONLY | O_CLOEXEC);
        close(folder);
    }
    opened[THE_FAULTS] = open_faults();
    send_all(line, opened);
    close_all(opened, DESCRIPTORS);
    close(line);
    /* Where the emulator is started by a script: the number is another's by then. */
    unsetenv("VMFORK_KEEPER_FD");
}
