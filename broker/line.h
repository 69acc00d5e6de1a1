/* The line to the agent: what is queued for it, what it is allowed to send. */
#ifndef VMFORK_LINE_H
#define VMFORK_LINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../guest/frame.h"

/* From now on `line` is where frames go. */
void line_open(int line);
struct buffer *line_queue(void);
/* While this is false no client is read: what it would send could only be queued. */
bool line_has_room(void);
/* The frame is on its way to the agent, as one of the stream `id`. */
void line_send(uint8_t kind, uint32_t id, const uint8_t *payload, size_t length);
void line_send_credit(uint32_t id, uint8_t channel, uint32_t bytes);
/* What is open on the stream `target` gets SIGKILL, or is given up. `id` is the request's own stream. */
void line_send_kill(uint32_t id, uint32_t target);
/* Bytes that went to the agent and that came from it. */
struct traffic {
    uint64_t sent;
    uint64_t received;
};
const struct traffic *line_traffic(void);
void line_note_received(size_t bytes);
/* What can be written is written. False when the agent is gone. */
bool line_flush(void);

#endif
