/* What the machine is called. */
#ifndef VMFORK_HOSTNAME_H
#define VMFORK_HOSTNAME_H

#include <stdbool.h>

enum { LONGEST_HOSTNAME = 64 };

/* Its kernel calls it so, and so do /etc/hostname and /etc/hosts, where the name leads back to it. False with errno set
 * when the kernel refuses; what cannot be written is told on the console. */
bool hostname_set(const char *name);

#endif
