/* A stream that is a TCP connection in the guest. */
#ifndef VMFORK_TUNNEL_H
#define VMFORK_TUNNEL_H

#include <stdint.h>

/* The stream is a connection to the port of the loopback, once that stands; or an error was sent there. */
void tunnel_connect(uint32_t stream, uint16_t port);
/* The stream is the connection `fd`, which is the tunnel's from now on; or an error was sent there. */
void tunnel_take(uint32_t stream, int fd);
/* Every connection is reset: for the program in the guest as for the host. */
void tunnels_reset(void);

#endif
