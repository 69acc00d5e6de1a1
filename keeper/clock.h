/* Time that no one sets, and deadlines in it. */
#ifndef VMFORK_CLOCK_H
#define VMFORK_CLOCK_H

#include <stdint.h>

/* A deadline that never comes. */
#define NEVER INT64_MAX

/* Milliseconds since some moment before the host's start. */
int64_t now_ms(void);
/* The deadline `ms` from now; 0 is never. */
int64_t deadline_in(uint64_t ms);
/* For poll(2): what is left until `deadline`; -1 for never. */
int wait_until(int64_t deadline);

#endif
