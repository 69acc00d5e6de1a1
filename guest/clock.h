/* The two clocks. */
#ifndef VMFORK_CLOCK_H
#define VMFORK_CLOCK_H

#include <stdint.h>

int64_t monotonic_ns(void);
int64_t wall_ns(void);

#endif
