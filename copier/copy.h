/* Bytes of a machine's memory, on their way into the file that holds the copy. */
#ifndef VMFORK_COPY_H
#define VMFORK_COPY_H

#include <stdbool.h>

#include "pages.h"

/* What is copied from, /proc/PID/mem, and to: the pieces of `m` lie in the file one behind the other. */
void copy_between(const struct memory *m, int memory, int target);
/* The pages are in the file as they were. False with errno set. */
bool copy_run(struct run run);
/* What the file `layer` has in the range is in the file too, at the same places; its holes are left. False with errno
 * set. */
bool copy_layer(int layer, int target, struct run range);

#endif
