#include "answer.h"

#include <errno.h>

#include "errors.h"

/* Above this no stream adds data, so what a slow line holds up is bounded and credit is not spent in vain. */
enum { DATA_LIMIT = 256 * 1024 };

static struct buffer out;

struct buffer *outbox(void)
{
    return &out;
}

bool outbox_has_room(void)
{
    return buffer_length(&out) < DATA_LIMIT;
}

void send_done(uint32_t stream)
{
    frame_end(&out, frame_begin(&out, REPLY, stream));
}

void send_error(uint32_t stream, const char *code, const char *message, int error)
{
    size_t mark = frame_begin(&out, ERROR, stream);
    put_text(&out, code);
    put_text(&out, message);
    put_number(&out, error);
    frame_end(&out, mark);
}

void send_errno(uint32_t stream, const char *message, int error)
{
    send_error(stream, error_code(error), message, error);
}

void send_invalid(uint32_t stream, const char *message)
{
    send_error(stream, "invalid", message, EINVAL);
}

void send_eof(uint32_t stream, uint8_t channel)
{
    size_t mark = frame_begin(&out, END_OF_FILE, stream);
    put_u8(&out, channel);
    frame_end(&out, mark);
}

void send_credit(uint32_t stream, uint8_t channel, uint32_t bytes)
{
    size_t mark = frame_begin(&out, CREDIT, stream);
    put_u8(&out, channel);
    put_u32(&out, bytes);
    frame_end(&out, mark);
}

void end_reply(uint32_t stream, size_t mark)
{
    if (!frame_end(&out, mark))
        send_invalid(stream, "the answer is larger than a frame");
}
