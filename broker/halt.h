/* A guest that halts: QEMU tells nothing of it, and runs on. */
#ifndef VMFORK_HALT_H
#define VMFORK_HALT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Looks at what the guest printed. Where its kernel says that it halts, the agent is asked for a sign of life. */
void halt_look(const char *text, size_t length);
/* When the guest is looked at again; NEVER where it did not say so, or has answered since. */
int64_t halt_deadline(void);
/* At the deadline: whether the guest counts as halted. One that somebody paused does not, and has a new deadline. */
bool halt_is_certain(void);

#endif
