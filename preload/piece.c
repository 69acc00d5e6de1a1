#include "piece.h"

#include <sys/stat.h>

/* A machine has a few slots for memory (hypervisor/qemu/command.py). Whoever opens one piece too many maps the file's
 * beginning: it is QEMU alone, once for each, as it starts. */
enum { PIECES = 64 };

struct piece {
    int fd;
    off_t start;
    dev_t device;
    ino_t inode;
};

static struct piece pieces[PIECES];
static int count;

void piece_note(int fd, off_t start)
{
    struct stat found;
    if (count < PIECES && fstat(fd, &found) == 0)
        pieces[count++] = (struct piece){fd, start, found.st_dev, found.st_ino};
}

off_t piece_start(int fd)
{
    struct stat found;
    /* The last that was noted. A number may be another file's by now: memory that goes has its file closed. */
    for (int index = count - 1; index >= 0; index--)
        if (pieces[index].fd == fd)
            return fstat(fd, &found) == 0 && found.st_dev == pieces[index].device && found.st_ino == pieces[index].inode
                       ? pieces[index].start
                       : 0;
    return 0;
}
