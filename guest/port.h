/* The virtio port to the host. */
#ifndef VMFORK_PORT_H
#define VMFORK_PORT_H

/* The port of that name, opened for good: a port can be opened once. Waits for it to appear. */
int port_open(const char *name);

#endif
