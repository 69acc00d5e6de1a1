/* A stream that is a connection in the guest: by TCP, or by a Unix socket. */
#ifndef VMFORK_TUNNEL_H
#define VMFORK_TUNNEL_H

#include <stdint.h>

#include "stream.h"

/* How much the host may have under way on a connection: what every stream has, up to what is held of one at most. */
enum { LEAST_WINDOW = FIRST_CREDIT, MOST_WINDOW = 16 * FIRST_CREDIT };

/* The stream is a connection to the port of the loopback, once that stands; or an error was sent there. `window` is 0
 * where the host did not ask for one. */
void tunnel_connect(uint32_t stream, uint16_t port, uint32_t window);
/* The stream is the connection `fd`, which is the tunnel's from now on; or an error was sent there. */
void tunnel_take(uint32_t stream, int fd, uint32_t window);
/* Every connection is reset: for the program in the guest as for the host. */
void tunnels_reset(void);

#endif
