/* CONNECT, LISTEN and ATTACH: ports of the guest. */
#ifndef VMFORK_PORTS_H
#define VMFORK_PORTS_H

/* Every connection is reset, and nobody listens for the host any more; the host was told. */
void ports_reset(void);

#endif
