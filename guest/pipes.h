/* What a program reads and writes: three pipes, or two and nothing to read. */
#ifndef VMFORK_PIPES_H
#define VMFORK_PIPES_H

#include <stdbool.h>

/* By their numbers: standard input, output, error. */
enum { PIPES = 3 };

struct pipes {
    int theirs[PIPES];
    /* These do not wait. -1 for standard input where the program has none. */
    int ours[PIPES];
};

/* False with errno set; `pipes_close` is due for both sides whatever is returned. */
bool pipes_open(struct pipes *p, bool wants_stdin);
void pipes_close(int fds[PIPES]);
/* Closes one of them, unless it is closed already. */
void pipe_close(int *fd);

#endif
