/* Where in its file a descriptor's piece of memory begins. */
#ifndef VMFORK_PIECE_H
#define VMFORK_PIECE_H

#include <sys/types.h>

/* What is mapped of the file open as `fd` begins at `start`. */
void piece_note(int fd, off_t start);
/* Where that is; 0 for a file of which nothing was said. */
off_t piece_start(int fd);

#endif
