/* The file systems of a machine of its own. */
#ifndef VMFORK_MOUNTS_H
#define VMFORK_MOUNTS_H

#include <stdbool.h>
#include <stdint.h>

/* The root can be left behind, which one that was mounted `can` already, and what every program expects is mounted and
 * linked. What failed is told by `mounts_complain`, once there is a console. */
void mounts_make(bool can);
void mounts_complain(void);

/* The root, where a tmpfs takes what is written to it, is as large as the memory that is left lets it be. */
void mounts_limit_root(void);
/* The file systems in memory have grown with it; none is made smaller. `tell` hears of each, with 0 or an errno, and
 * its size in bytes. */
void mounts_grow(void (*tell)(const char *target, int error, uint64_t bytes));

#endif
