/* Files with several names: where each was met first. */
#ifndef VMFORK_LINKS_H
#define VMFORK_LINKS_H

#include <stddef.h>
#include <sys/types.h>

struct links {
    struct link **chains;
    size_t bytes;
};

/* The path that the file was met under before. NULL when it was not, or when there are too many to know: then it is
 * met under `path` now. */
const char *links_meet(struct links *l, dev_t device, ino_t inode, const char *path);
void links_free(struct links *l);

#endif
