/* Bytes of a machine's memory, on their way into the file that holds the copy. */
#ifndef VMFORK_COPY_H
#define VMFORK_COPY_H

#include <stdbool.h>

#include "pages.h"

/* What is copied from, /proc/PID/mem, and to: the page at `start` becomes the first of the file. */
void copy_between(int memory, uint64_t start, int target);
/* The pages are in the file as they were. False with errno set. */
bool copy_run(struct run run);
/* What the file `layer` has is in the file too, at the same places; its holes are left. False with errno set. */
bool copy_layer(int layer, int target);

#endif
