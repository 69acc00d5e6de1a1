/* The one line to the host: bytes in become frames, answers go out, and a host that is gone is noticed. */
#ifndef VMFORK_CONNECTION_H
#define VMFORK_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "frame.h"

enum line { LINE_PORT, LINE_SOCKET };

/* `fd` is a virtio port, which outlives its clients, or a socket, whose end is the agent's end. */
void connection_open(int fd, enum line line);
/* Takes the readiness that epoll told; see `connection_work`. */
void connection_event(uint32_t events);
/* Reads, answers, pumps and writes until nothing more can be done without waiting. */
void connection_work(void);
/* Once everything queued is on its way, or cannot be, `then` is called. It does not return. */
void connection_finish(void (*then)(void));

/* Frames are written here. Data of streams is added only while there is room; answers always are. */
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

/* Everything the present client had open or was owed is dropped. */
void connection_reset(void);
/* The client broke the protocol: its state is dropped and only HELLO is listened for. */
void connection_violated(uint32_t stream, const char *how);

#endif
