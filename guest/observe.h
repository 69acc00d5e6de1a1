/* Whether anybody is told what happens to files. */
#ifndef VMFORK_OBSERVE_H
#define VMFORK_OBSERVE_H

#include <stdbool.h>

bool observe_is_open(void);

#endif
