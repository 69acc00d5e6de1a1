/* What goes out to the host: the queue, and the frames written into it. */
#ifndef VMFORK_ANSWER_H
#define VMFORK_ANSWER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "frame.h"

/* The queue, which the loop over the line empties. Data of streams is added only while there is room; answers always
 * are. */
struct buffer *outbox(void);
bool outbox_has_room(void);

void send_done(uint32_t stream);
void send_error(uint32_t stream, const char *code, const char *message, int error);
/* The code follows errno. */
void send_errno(uint32_t stream, const char *message, int error);
void send_invalid(uint32_t stream, const char *message);
void send_eof(uint32_t stream, uint8_t channel);
void send_credit(uint32_t stream, uint8_t channel, uint32_t bytes);
/* Ends a REPLY begun with frame_begin, or sends an error in its place when it is too large. */
void end_reply(uint32_t stream, size_t mark);

#endif
