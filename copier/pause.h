/* The pause: the machine stands still, and its device state and the last of its pages are copied. */
#ifndef VMFORK_PAUSE_H
#define VMFORK_PAUSE_H

#include <stdint.h>

#include "pages.h"

/* What is copied how. `state` is a file that is open for writing alone; `beside` is said to the monitor in the pause,
 * where it is not empty: what that begins is of the same moment. */
struct work {
    struct memory memory;
    int state;
    const char *beside;
};

/* What it took, in microseconds: all of it, and how it splits. */
struct spent {
    int64_t pause_us;
    int64_t stop_us;
    int64_t save_us;
    int64_t go_on_us;
    int64_t pages;
};

/* The copy is of one moment, and the machine runs on, or stands still as it did. NULL, or what failed, the same in
 * that; whoever dies in between leaves a process that lets it run on. */
const char *pause_and_copy(const struct work *work, struct spent *spent);

#endif
