/* A disk that the guest writes to, beside its root. */
#ifndef VMFORK_SCRATCH_H
#define VMFORK_SCRATCH_H

/* Where the machine has such a disk, it is mounted. `load` is called with the list of the modules that it needs. A disk
 * that cannot be mounted is fatal: programs would fill the memory in its place. */
void scratch_mount(void (*load)(const char *list));

#endif
