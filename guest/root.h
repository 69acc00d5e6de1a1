/* A root that does not lie in memory: a file system on a disk that is only read, and what is written over it. */
#ifndef VMFORK_ROOT_H
#define VMFORK_ROOT_H

#include <stdbool.h>

/* Where the initramfs says so, the root is that of the disk. `prepare` is called once the devices are there: it
 * loads what they need. Gives whether it did; a failure is fatal, because nothing is there to serve with. */
bool root_from_disk(void (*prepare)(void));
/* The file system in memory that takes what is written to such a root; -1 where there is none. */
int root_upper(void);

#endif
