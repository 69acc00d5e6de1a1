/* What a client asks: passed on to the agent, or answered here. */
#ifndef VMFORK_REQUEST_H
#define VMFORK_REQUEST_H

#include <stddef.h>
#include <stdint.h>

#include "client.h"

/* Requests of the broker's own. No agent has them. */
enum { OP_STATUS = 240, OP_RELEASE, OP_END, OP_BACKGROUND, OP_OUTPUT, OP_SIGNAL, OP_KEEP, OP_OWN = OP_STATUS };

/* What HELLO is answered, after the nonce: as the agent said it. */
void request_set_greeting(const uint8_t *greeting, size_t length);

/* Takes a client's frame. Gives how the client broke the protocol, else NULL: the agent never sees what it would have
 * to take for a broken line, since the line is everyone's. */
const char *handle_client_frame(struct client *client, const struct frame *frame);

#endif
