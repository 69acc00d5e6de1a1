/* What whoever starts passt says to the library, in its environment. */
#ifndef VMFORK_GIVEN_H
#define VMFORK_GIVEN_H

#include <stdint.h>

/* The descriptor that was passed, and the one that passt is told of; where passt's coming up is told; and the host's
 * own resolver where that listens at the loopback, in the order of the host, or 0. Descriptors are -1 for none. */
struct given {
    int passed, told, ready;
    uint32_t resolver;
};

/* Each of them; `passed` is -1 where one is missing, or is none. */
struct given read_given(void);

#endif
