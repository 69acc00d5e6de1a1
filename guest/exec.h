/* What EXEC has open. */
#ifndef VMFORK_EXEC_H
#define VMFORK_EXEC_H

#include <stdbool.h>

/* A program runs, or is about to. */
bool exec_is_open(void);

#endif
