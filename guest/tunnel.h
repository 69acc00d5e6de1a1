/* CONNECT: connections to ports of the guest. */
#ifndef VMFORK_TUNNEL_H
#define VMFORK_TUNNEL_H

/* Every connection is reset: for the program in the guest as for the host. */
void tunnels_reset(void);

#endif
