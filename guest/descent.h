/* A program and all that descends from it, where no control group holds them together. */
#ifndef VMFORK_DESCENT_H
#define VMFORK_DESCENT_H

#include <sys/types.h>

/* SIGKILL to the processes of the leader's session, and to all that they started and that has not left its parent. */
void descent_kill(pid_t leader);

#endif
