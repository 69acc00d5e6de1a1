#include "request.h"

#include <stddef.h>
#include <stdint.h>

#include "answer.h"
#include "fields.h"
#include "operation.h"
#include "stream.h"
#include "version.h"

/* clang-format off */
static const struct {
    void (*answer)(uint32_t stream, struct fields *f);
    size_t fewest;
    size_t most;
} REQUESTS[] = {
    [OP_HELLO] = {do_hello, 2, PROTOCOL >= 4 ? 3 : 2},
    [OP_PING] = {do_ping, 0, 0},
    [OP_EXEC] = {do_exec, 4, SIZE_MAX},
    [OP_KILL] = {do_kill, 2, 2},
    [OP_READ] = {do_read, 3, 3},
    [OP_STAT] = {do_stat, 1, 1},
    [OP_LIST] = {do_list, 1, 1},
    [OP_REMOVE] = {do_remove, 2, 2},
    [OP_MKDIR] = {do_mkdir, 3, 3},
    [OP_ADOPT] = {do_adopt, 2, SIZE_MAX},
    [OP_CLOCK] = {do_clock, 1, 1},
    [OP_QUIESCE] = {do_quiesce, 0, 0},
    [OP_SHUTDOWN] = {do_shutdown, 0, 0},
#if PROTOCOL >= 2
    [OP_NOTIFY] = {do_notify, 1, 1},
#endif
#if PROTOCOL >= 3
    [OP_WRITE] = {do_write, 3, 4},
    [OP_GROWN] = {do_grown, 0, 0},
    [OP_PUT] = {do_put, 3, 3},
    [OP_GET] = {do_get, 2, 2},
    [OP_MOVE] = {do_move, 2, 2},
    [OP_CHANGE] = {do_change, 4, 4},
#else
    [OP_WRITE] = {do_write, 3, 3},
#endif
#if PROTOCOL >= 4
    [OP_NET] = {do_net, 1, 4},
    [OP_RESIZE] = {do_resize, 3, 3},
    [OP_CONNECT] = {do_connect, 1, 2},
    [OP_LISTEN] = {do_listen, 1, 2},
    [OP_ATTACH] = {do_attach, 2, 3},
    [OP_WATCH] = {do_watch, 2, 2},
    [OP_LEFT] = {do_left, 0, 0},
    [OP_TAKE] = {do_take, 1, 1},
    [OP_SERVE] = {do_serve, 0, 0},
    [OP_ANSWER] = {do_answer, 2, 2},
    [OP_DISK] = {do_disk, 0, 0},
#endif
};
/* clang-format on */

static const char *handle_request(const struct frame *frame)
{
    struct fields fields;
    if (frame->length < 1 || !fields_open(&fields, frame->payload + 1, frame->length - 1))
        return "a request that is not a list of fields";
    uint8_t opcode = frame->payload[0];
    /* HELLO ends everything that was open, so its stream is never in use. */
    if (frame->stream == 0 || (opcode != OP_HELLO && stream_find(frame->stream) != NULL))
        return "a stream number that is 0 or in use";
    if (opcode >= sizeof REQUESTS / sizeof *REQUESTS || REQUESTS[opcode].answer == NULL)
        send_error(frame->stream, "unsupported", "this agent does not know the request", 0);
    else if (fields.count < REQUESTS[opcode].fewest || fields.count > REQUESTS[opcode].most)
        send_invalid(frame->stream, "the wrong number of fields");
    else
        REQUESTS[opcode].answer(frame->stream, &fields);
    return NULL;
}

static const char *handle_data(struct stream *s, const struct frame *frame)
{
    size_t length = frame->length - 1;
    if (frame->payload[0] != s->kind->channel || s->kind->data == NULL || length > s->granted)
        return "data that was not allowed";
    s->granted -= (uint32_t)length;
    s->kind->data(s, frame->payload + 1, length);
    return NULL;
}

static const char *handle_eof(struct stream *s, const struct frame *frame)
{
    if (frame->payload[0] != s->kind->channel || s->kind->eof == NULL)
        return "the end of a channel that has none";
    s->kind->eof(s);
    return NULL;
}

static void handle_credit(struct stream *s, const struct frame *frame)
{
    if (s->credit[frame->payload[0]] <= UINT64_MAX / 2)
        s->credit[frame->payload[0]] += read_u32(frame->payload + 1);
}

static size_t shortest_payload(uint8_t kind)
{
    return kind == CREDIT ? 5 : 1;
}

static bool channel_frame_is_sound(const struct frame *frame)
{
    size_t least = shortest_payload(frame->kind);
    bool fits = frame->kind == DATA ? frame->length >= least : frame->length == least;
    return fits && frame->payload[0] < CHANNELS;
}

const char *handle_frame(const struct frame *frame)
{
    if (frame->kind == REQUEST)
        return handle_request(frame);
    bool from_host = frame->kind == DATA || frame->kind == END_OF_FILE || frame->kind == CREDIT;
    if (!from_host || !channel_frame_is_sound(frame))
        return "a frame the host may not send";
    struct stream *s = stream_find(frame->stream);
    /* The two sides may have crossed on the wire. */
    if (s == NULL)
        return NULL;
    if (frame->kind == DATA)
        return handle_data(s, frame);
    if (frame->kind == END_OF_FILE)
        return handle_eof(s, frame);
    handle_credit(s, frame);
    return NULL;
}
