/* TCP sockets of the guest's own loopback, 127.0.0.1 and ::1. */
#ifndef VMFORK_LOOPBACK_H
#define VMFORK_LOOPBACK_H

#include <stdbool.h>
#include <stdint.h>

/* Neither blocks nor delays small pieces. -1 with errno set. */
int loopback_socket(int family);
/* The connection stands, or is on its way. False with errno set. */
bool loopback_connect(int fd, int family, uint16_t port);
/* Whether a connection that was on its way stands. False with errno set: EALREADY while it is not known. */
bool loopback_is_connected(int fd, int family, uint16_t port);
/* Whether it is one of 127.0.0.0/8. The host's byte order, here and below. */
bool loopback_is_own(uint32_t address);
/* Somebody listens at the port of that address of the loopback. -1 with errno set. */
int loopback_listen(uint32_t address, uint16_t port);
/* Who called, as `loopback_socket` makes them. -1 with errno set: EAGAIN for nobody. */
int loopback_accept(int fd);
/* Closing it tells the other side that its peer is lost. */
void loopback_reset_on_close(int fd);

#endif
