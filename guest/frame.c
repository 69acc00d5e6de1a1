#include "frame.h"

#include <stdio.h>
#include <string.h>

/* How the parser works. Bytes are held until a frame is whole; its payload is lent, not copied. It is in one of two
 * states:
 *
 *             bytes that cannot be a frame, or whose reader could make no sense of them
 *   FRAMES --------------------------------------------------------------------------> LOST
 *      ^                                                                                 |
 *      +---------------------------------------------------------------------------------+
 *                         the next bytes look like a HELLO, which are kept
 *
 * The first byte of a frame is 0, because a length never reaches 2^24: so an idle byte, FF, is told from a frame, and a
 * client that fills a half-sent frame with idle bytes is understood whatever was lost. HELLO alone is found again,
 * by 14 bytes: a header that can be one, its opcode, the length of its nonce. */

enum { HELLO_SIGN = FRAME_HEADER + 1 + 4, HELLO_SHORTEST = 1 + 4 + NONCE_LENGTH + 4, HELLO_LONGEST = 64 };

uint32_t read_u32(const uint8_t *b)
{
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

void write_u32(uint8_t *b, uint32_t value)
{
    b[0] = (uint8_t)(value >> 24);
    b[1] = (uint8_t)(value >> 16);
    b[2] = (uint8_t)(value >> 8);
    b[3] = (uint8_t)value;
}

static bool looks_like_hello(const uint8_t *b)
{
    uint32_t length = read_u32(b);
    return length >= HELLO_SHORTEST && length <= HELLO_LONGEST && b[4] == REQUEST && b[FRAME_HEADER] == OP_HELLO &&
           read_u32(b + FRAME_HEADER + 1) == NONCE_LENGTH;
}

static void find_hello(struct parser *p)
{
    while (buffer_length(&p->held) >= HELLO_SIGN) {
        if (looks_like_hello(buffer_head(&p->held))) {
            p->lost = false;
            return;
        }
        buffer_take(&p->held, 1);
    }
}

static void skip_idle(struct parser *p)
{
    size_t idle = 0, held = buffer_length(&p->held);
    while (idle < held && buffer_head(&p->held)[idle] == IDLE)
        idle++;
    if (idle)
        buffer_take(&p->held, idle);
}

static enum parsed give_up(struct parser *p, struct frame *frame, size_t skip)
{
    buffer_take(&p->held, skip);
    p->lost = true;
    frame->payload = NULL;
    frame->length = 0;
    return PARSED_GARBAGE;
}

static bool kind_exists(uint8_t kind)
{
    return kind >= REQUEST && kind <= EVENT;
}

enum parsed parser_next(struct parser *p, struct frame *frame)
{
    frame->stream = 0;
    if (p->lost)
        find_hello(p);
    if (p->lost)
        return PARSED_NOTHING;
    skip_idle(p);
    size_t held = buffer_length(&p->held);
    if (held == 0)
        return PARSED_NOTHING;
    const uint8_t *head = buffer_head(&p->held);
    if (head[0] != 0)
        return give_up(p, frame, 1);
    if (held < FRAME_HEADER)
        return PARSED_NOTHING;
    frame->length = read_u32(head);
    frame->kind = head[4];
    frame->stream = read_u32(head + 5);
    if (frame->length > FRAME_MAX || !kind_exists(frame->kind))
        return give_up(p, frame, 1);
    if (held < FRAME_HEADER + frame->length)
        return PARSED_NOTHING;
    frame->payload = head + FRAME_HEADER;
    /* Not buffer_take: that could free the payload with the last byte. */
    p->held.start += FRAME_HEADER + frame->length;
    return PARSED_FRAME;
}

bool parser_is_cut(const struct parser *p)
{
    return buffer_length(&p->held) > 0 && *buffer_head(&p->held) == IDLE;
}

void parser_lose(struct parser *p)
{
    p->lost = true;
}

size_t frame_begin(struct buffer *out, uint8_t kind, uint32_t stream)
{
    size_t mark = buffer_length(out);
    put_u32(out, 0);
    put_u8(out, kind);
    put_u32(out, stream);
    return mark;
}

bool frame_end(struct buffer *out, size_t mark)
{
    size_t length = buffer_length(out) - mark - FRAME_HEADER;
    if (length > FRAME_MAX) {
        buffer_truncate(out, mark);
        return false;
    }
    write_u32(buffer_head(out) + mark, (uint32_t)length);
    return true;
}

void put_u8(struct buffer *out, uint8_t value)
{
    buffer_add(out, &value, 1);
}

void put_u32(struct buffer *out, uint32_t value)
{
    uint8_t bytes[4];
    write_u32(bytes, value);
    buffer_add(out, bytes, sizeof bytes);
}

void put_field(struct buffer *out, const void *bytes, size_t length)
{
    put_u32(out, (uint32_t)length);
    buffer_add(out, bytes, length);
}

void put_text(struct buffer *out, const char *text)
{
    put_field(out, text, strlen(text));
}

void put_number(struct buffer *out, int64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)value);
    put_text(out, text);
}

void put_octal(struct buffer *out, unsigned value)
{
    char text[16];
    snprintf(text, sizeof text, "%o", value);
    put_text(out, text);
}
