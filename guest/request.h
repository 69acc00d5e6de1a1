/* From a frame to the code that answers it. */
#ifndef VMFORK_REQUEST_H
#define VMFORK_REQUEST_H

#include "frame.h"

/* NULL once the frame is handled; else how it broke the protocol, which ends what the client has open. */
const char *handle_frame(const struct frame *frame);

#endif
