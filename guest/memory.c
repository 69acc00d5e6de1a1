#include "memory.h"

#include <stdlib.h>

#include "fatal.h"

void *zeroed(size_t size)
{
    void *memory = calloc(1, size);
    if (memory == NULL)
        fatal("out of memory");
    return memory;
}
