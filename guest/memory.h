/* Memory that is there, or else the agent ends. */
#ifndef VMFORK_MEMORY_H
#define VMFORK_MEMORY_H

#include <stddef.h>

/* `free` is due. */
void *zeroed(size_t size);

#endif
