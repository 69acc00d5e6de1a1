/* A disk that the guest writes to, beside its root. */
#ifndef VMFORK_SCRATCH_H
#define VMFORK_SCRATCH_H

#include <stdint.h>

enum { SCRATCH_NAME = 16 };

/* Where the machine has such a disk when it boots, it is mounted. A disk that cannot be mounted is fatal: programs
 * would fill the memory in its place. */
void scratch_mount(void);
/* The same with a disk that the kernel has not seen yet; `name` is what it calls it. Gives what failed, with errno set,
 * or NULL. Nothing is mounted then. */
const char *scratch_add(char name[SCRATCH_NAME]);
/* The size of that disk; 0 where it is not known. */
uint64_t scratch_bytes(const char *name);

#endif
