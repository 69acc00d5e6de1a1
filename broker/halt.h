/* A guest that halts: QEMU tells nothing of it, and runs on. */
#ifndef VMFORK_HALT_H
#define VMFORK_HALT_H

#include <stddef.h>
#include <stdint.h>

/* Looks at what the guest printed. Where its kernel says that it halts, the agent is asked for a sign of life. */
void halt_look(const char *text, size_t length);
/* When the guest counts as halted; NEVER where it did not say so, or has answered since. */
int64_t halt_deadline(void);

#endif
