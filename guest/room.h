/* Room for what the host sends. */
#ifndef VMFORK_ROOM_H
#define VMFORK_ROOM_H

#include <stdbool.h>
#include <stdint.h>

enum { ROOM_TEXT = 128 };

/* Memory that programs and files can still have, as the kernel estimates it; UINT64_MAX where it does not say. */
uint64_t memory_available(void);

/* Whether the file system of `fd` takes this many bytes more. When it lies in memory, the machine must have that much
 * left, and some for its programs: a kernel that runs out of memory for files has nothing to end but the machine. If
 * it does not, `why` says so with the numbers. */
bool room_for(int fd, uint64_t bytes, char why[ROOM_TEXT]);

#endif
