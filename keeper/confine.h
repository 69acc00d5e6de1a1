/* What an emulator is kept from that was built without a sandbox of its own. */
#ifndef VMFORK_CONFINE_H
#define VMFORK_CONFINE_H

#include <stdbool.h>

/* We can start one program more, and from then on: no process, no other user, no other priority, nothing of an
 * administrator's. Whoever has the other end of `keeper` must call `allow_start`, or the start is waited for. False,
 * and errno, when the kernel refuses. */
bool confine_self(int keeper);

/* The program at the other end of `program` may start, once; or it has ended. `process` is its pidfd. */
void allow_start(int program, int process);

#endif
