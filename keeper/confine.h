/* What an emulator is kept from, whether or not it was built with a sandbox of its own. */
#ifndef VMFORK_CONFINE_H
#define VMFORK_CONFINE_H

#include <stdbool.h>

/* This process can start one more program. From then on it can start no process, become no other user, take no other
 * priority, and do nothing that is an administrator's. It opens no file for writing, changes no name, makes no
 * connection, unless `outward`, and then over IP alone, and signals nobody but itself. The start waits until whoever
 * has the other end of `keeper` calls `allow_start`. False with errno set when the kernel refuses. */
bool confine_self(int keeper, bool outward);

/* The program at the other end of `program` may start, once; or it has ended. `process` is its pidfd. */
void allow_start(int program, int process);

#endif
