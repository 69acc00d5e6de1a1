/* The one line to the host: bytes in become frames, answers go out, and a host that is gone is noticed. */
#ifndef VMFORK_CONNECTION_H
#define VMFORK_CONNECTION_H

#include <stdbool.h>
#include <stdint.h>

enum line { LINE_PORT, LINE_SOCKET };

/* `fd` is a virtio port, which outlives its clients, or a socket, whose end is the agent's end. */
void connection_open(int fd, enum line line);
/* Takes the readiness that epoll told; see `connection_work`. */
void connection_event(uint32_t events);
/* One round: reads once, lets every stream do what it can, and writes once. False when nothing more can be done without
 * waiting. Does not return once the agent is ending and everything queued is on its way, or cannot be. */
bool connection_work(void);

#endif
