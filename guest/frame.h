/* The frames of docs/reference/wire.md: parsing and writing, without any input or output. */
#ifndef VMFORK_FRAME_H
#define VMFORK_FRAME_H

#include <stdbool.h>
#include <stdint.h>

#include "buffer.h"

enum { FRAME_HEADER = 9, FRAME_MAX = 262144, NONCE_LENGTH = 16, IDLE = 0xFF };

enum kind { REQUEST = 1, REPLY, ERROR, DATA, END_OF_FILE, CREDIT, EVENT };

enum opcode {
    OP_HELLO = 1,
    OP_PING,
    OP_EXEC,
    OP_KILL,
    OP_READ,
    OP_WRITE,
    OP_STAT,
    OP_LIST,
    OP_REMOVE,
    OP_MKDIR,
    OP_ADOPT,
    OP_CLOCK,
    OP_QUIESCE,
    OP_GROWN,
    OP_NET,
    OP_SHUTDOWN,
    OP_NOTIFY,
    OP_RESIZE,
    OP_PUT,
    OP_GET,
    OP_MOVE,
    OP_CHANGE,
    OP_CONNECT,
    OP_LISTEN,
    OP_ATTACH,
    OP_WATCH,
    OP_LEFT,
    OP_TAKE,
    OP_SERVE,
    OP_ANSWER,
    OP_DISK = 31,
};

struct frame {
    uint8_t kind;
    uint32_t stream;
    const uint8_t *payload;
    uint32_t length;
};

struct parser {
    struct buffer held;
    /* After bytes that make no sense only a HELLO is looked for. */
    bool lost;
};

enum parsed { PARSED_FRAME, PARSED_NOTHING, PARSED_GARBAGE };

/* The next frame in what the parser holds, removed from it. Its payload is valid until the parser gets more bytes.
 * PARSED_GARBAGE leaves the parser lost; `frame->stream` is the stream of the bad frame, 0 where it cannot be told. */
enum parsed parser_next(struct parser *p, struct frame *frame);
/* Idle bytes follow the frame that was given: they may have completed it, and no client sends them behind one of its
 * own. */
bool parser_is_cut(const struct parser *p);
/* Everything up to the next HELLO is discarded. For a payload its reader could make no sense of. */
void parser_lose(struct parser *p);

uint32_t read_u32(const uint8_t *bytes);
void write_u32(uint8_t *bytes, uint32_t value);

/* A frame is begun, filled with the put functions, then ended; `mark` ties the two together. */
size_t frame_begin(struct buffer *out, uint8_t kind, uint32_t stream);
/* Removes the frame again and returns false when its payload is larger than a frame may be. */
bool frame_end(struct buffer *out, size_t mark);

void put_u8(struct buffer *out, uint8_t value);
void put_u32(struct buffer *out, uint32_t value);
void put_field(struct buffer *out, const void *bytes, size_t length);
void put_text(struct buffer *out, const char *text);
void put_number(struct buffer *out, int64_t value);
void put_octal(struct buffer *out, unsigned value);

#endif
