/* The processes of EXEC. */
#ifndef VMFORK_EXEC_H
#define VMFORK_EXEC_H

#include <stdbool.h>

/* Takes note of every child that has ended; orphans given to this process as init go the same way. */
void exec_reap(void);
bool exec_is_open(void);

#endif
