/* What the guest sends: to the client it is for. All of it is hostile. */
#ifndef VMFORK_REPLY_H
#define VMFORK_REPLY_H

#include "../guest/frame.h"

/* Takes a frame of the agent's. Gives how the guest broke the protocol, else NULL. */
const char *handle_guest_frame(const struct frame *frame);

#endif
