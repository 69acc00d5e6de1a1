#include "reply.h"

#include <stdbool.h>
#include <stddef.h>

#include "../guest/fields.h"
#include "kept.h"
#include "stream.h"

static void deliver(const struct stream *s, const struct frame *frame)
{
    if (s->client != NULL)
        client_send(s->client, frame->kind, s->client_id, frame->payload, frame->length);
}

static const char *take_answer(struct stream *s, const struct frame *frame)
{
    if (s == NULL)
        return NULL;
    deliver(s, frame);
    stream_close(s);
    return NULL;
}

/* An agent that lost its place has ended everything for everybody, and no client sent what it could not read. */
static const char *take_error(struct stream *s, const struct frame *frame)
{
    struct fields fields;
    if (!fields_open(&fields, frame->payload, frame->length) || fields.count != 3)
        return "an error that is not three fields";
    if (field_is(field_take(&fields), "protocol"))
        return "word that its agent lost its place on the line";
    return take_answer(s, frame);
}

static const char *take_data(struct stream *s, const struct frame *frame)
{
    if (frame->length < 1 || frame->payload[0] >= CHANNEL_ARGUMENTS)
        return "data on a channel that has none";
    if (s == NULL)
        return NULL;
    deliver(s, frame);
    return stream_spend(s, frame->payload[0], frame->length - 1) ? NULL : "data beyond its credit";
}

static const char *take_credit(struct stream *s, const struct frame *frame)
{
    if (frame->length != 5 || frame->payload[0] >= CHANNELS)
        return "credit that cannot be read";
    if (s == NULL)
        return NULL;
    if (s->allowed[frame->payload[0]] <= UINT64_MAX / 2)
        s->allowed[frame->payload[0]] += read_u32(frame->payload + 1);
    deliver(s, frame);
    return NULL;
}

static const char *take_progress(const struct stream *s, const struct frame *frame)
{
    if (frame->kind == END_OF_FILE && (frame->length != 1 || frame->payload[0] >= CHANNEL_ARGUMENTS))
        return "the end of a channel that has none";
    if (s != NULL)
        deliver(s, frame);
    return NULL;
}

static bool is_lost(const struct frame *frame)
{
    struct fields fields;
    return fields_open(&fields, frame->payload, frame->length) && fields.count == 3 &&
           field_is(field_take(&fields), "protocol");
}

const char *handle_guest_frame(const struct frame *frame)
{
    struct stream *s = stream_find(frame->stream);
    if (s != NULL && s->is_kept && frame->kind != REQUEST && !(frame->kind == ERROR && is_lost(frame)))
        return kept_take(s, frame);
    switch (frame->kind) {
    case REPLY:
        return take_answer(s, frame);
    case ERROR:
        return take_error(s, frame);
    case DATA:
        return take_data(s, frame);
    case CREDIT:
        return take_credit(s, frame);
    case END_OF_FILE:
    case EVENT:
        return take_progress(s, frame);
    default:
        return "a frame that only a host sends";
    }
}
