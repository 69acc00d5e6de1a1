#include "request.h"

#include <stdbool.h>
#include <string.h>

#include "../guest/fatal.h"
#include "../guest/fields.h"
#include "../keeper/message.h"
#include "kept.h"
#include "line.h"
#include "release.h"
#include "stream.h"

/* What becomes of a request. One that is not here is unknown: what it would mean by its numbers is not known either. */
enum rule { REFUSED_AS_UNKNOWN, PASSED, AIMED, SENDING, RUNNING, OWNERS };

/* clang-format off */
static const uint8_t RULES[] = {
    [OP_PING] = PASSED,
    [OP_EXEC] = RUNNING,
    [OP_KILL] = AIMED,
    [OP_READ] = PASSED,
    [OP_WRITE] = SENDING,
    [OP_STAT] = PASSED,
    [OP_LIST] = PASSED,
    [OP_REMOVE] = PASSED,
    [OP_MKDIR] = PASSED,
    [OP_ADOPT] = OWNERS,
    [OP_CLOCK] = PASSED,
    [OP_QUIESCE] = OWNERS,
    [OP_GROWN] = OWNERS,
    [OP_NET] = OWNERS,
    [OP_SHUTDOWN] = OWNERS,
    [OP_NOTIFY] = OWNERS,
    [OP_RESIZE] = AIMED,
    [OP_PUT] = SENDING,
    [OP_GET] = PASSED,
    [OP_MOVE] = PASSED,
    [OP_CHANGE] = PASSED,
    [OP_CONNECT] = SENDING,
    [OP_LISTEN] = PASSED,
    [OP_ATTACH] = AIMED,
    [OP_WATCH] = PASSED,
    [OP_LEFT] = PASSED,
    [OP_TAKE] = OWNERS,
    [OP_SERVE] = PASSED,
    [OP_ANSWER] = PASSED,
    [OP_DISK] = OWNERS,
};
/* clang-format on */

static uint8_t greeting[1024];
static size_t greeting_length;

void request_set_greeting(const uint8_t *bytes, size_t length)
{
    if (length > sizeof greeting)
        fatal("a greeting that is too long");
    memcpy(greeting, bytes, length);
    greeting_length = length;
}

/* As the agent does: nothing of what the client had before is left. */
static const char *greet(struct client *client, const struct frame *frame, struct fields *fields)
{
    struct field nonce = fields->count == 2 ? field_take(fields) : (struct field){NULL, 0};
    if (nonce.length != NONCE_LENGTH) {
        client_send_error(client, frame->stream, "invalid", "a nonce of 16 bytes and a protocol number are needed");
        return NULL;
    }
    streams_abandon(client);
    kept_forget(client);
    buffer_take(&client->queue, buffer_length(&client->queue));
    buffer_add(&client->queue, nonce.bytes, nonce.length);
    client_send(client, REPLY, frame->stream, greeting, greeting_length);
    return NULL;
}

static struct stream *open_stream(struct client *client, const struct frame *frame)
{
    struct stream *s = stream_new(client, frame->stream);
    if (s == NULL)
        client_send_error(client, frame->stream, "busy", "too many requests are open");
    return s;
}

/* What may end when the machine gets an owner: nothing runs in the guest because of it. */
static bool is_tunnel(uint8_t opcode)
{
    return opcode == OP_CONNECT || opcode == OP_LISTEN || opcode == OP_SERVE;
}

static void pass(struct client *client, const struct frame *frame, uint8_t input, uint8_t next_input)
{
    struct stream *s = open_stream(client, frame);
    if (s == NULL)
        return;
    s->is_program = frame->payload[0] == OP_EXEC;
    s->is_tunnel = is_tunnel(frame->payload[0]);
    s->input = input;
    s->next_input = next_input;
    line_send(REQUEST, s->id, frame->payload, frame->length);
}

/* Nothing of the client's is open on the line under that number: it may wait here for what a program writes. */
static void give_up(struct client *client, const struct frame *frame, uint32_t number)
{
    if (frame->payload[0] == OP_KILL && kept_cancel(client, number))
        client_send(client, REPLY, frame->stream, NULL, 0);
    else
        client_send_error(client, frame->stream, "not-found", "nothing is open on that stream");
}

/* The first field is a stream of the client's. The agent knows it by another number. */
static void aim(struct client *client, const struct frame *frame, struct fields *fields)
{
    uint64_t number = 0;
    if (fields->count == 0 || !field_number(field_take(fields), &number) || number > UINT32_MAX) {
        client_send_error(client, frame->stream, "invalid", "a stream is needed");
        return;
    }
    const struct stream *target = stream_of(client, (uint32_t)number);
    if (target == NULL) {
        give_up(client, frame, (uint32_t)number);
        return;
    }
    struct stream *s = open_stream(client, frame);
    if (s == NULL)
        return;
    s->is_tunnel = frame->payload[0] == OP_ATTACH;
    s->input = s->is_tunnel ? CHANNEL_CONTENT : NO_CHANNEL;
    size_t mark = frame_begin(line_queue(), REQUEST, s->id);
    put_u8(line_queue(), frame->payload[0]);
    put_number(line_queue(), target->id);
    buffer_add(line_queue(), fields->next, (size_t)(fields->end - fields->next));
    if (frame_end(line_queue(), mark))
        return;
    /* The agent's number may have more digits, and only nonsense fills a frame so far. */
    stream_close(s);
    client_send_error(client, frame->stream, "invalid", "the wrong number of fields");
}

static bool has_option(struct field options, const char *name)
{
    while (options.length > 0)
        if (field_is(field_take_option(&options), name))
            return true;
    return false;
}

/* Arguments that follow the request come on a channel of their own, and only then the program's input. */
static void run(struct client *client, const struct frame *frame, struct fields *fields)
{
    bool follow = fields->count > 0 && has_option(field_take(fields), "arguments");
    pass(client, frame, follow ? CHANNEL_ARGUMENTS : CHANNEL_CONTENT, follow ? CHANNEL_CONTENT : NO_CHANNEL);
}

static void put_count(struct client *client, const char *name, int64_t count)
{
    put_text(&client->queue, name);
    put_number(&client->queue, count);
}

static void tell_status(struct client *client, const struct frame *frame)
{
    size_t mark = frame_begin(&client->queue, REPLY, frame->stream);
    put_count(client, "clients", clients_count());
    put_count(client, "requests", streams_count());
    put_count(client, "background", kept_running());
    put_count(client, "programs", streams_count_programs());
    put_count(client, "sent", (int64_t)line_traffic()->sent);
    put_count(client, "received", (int64_t)line_traffic()->received);
    frame_end(&client->queue, mark);
}

static void release(struct client *client, const struct frame *frame, struct fields *fields)
{
    struct field token = fields->count == 1 ? field_take(fields) : (struct field){NULL, 0};
    if (token.length != TOKEN_SIZE)
        client_send_error(client, frame->stream, "invalid", "a token of 16 bytes is needed");
    else if (release_is_asked() || streams_are_in_use() || kept_running() > 0)
        client_send_error(client, frame->stream, "busy",
                          "something still runs in the guest, for a client or in the background");
    else {
        streams_reset_tunnels();
        release_ask(client, frame->stream, token.bytes);
    }
}

static void stop(struct client *client, const struct frame *frame, struct fields *fields)
{
    uint64_t grace_ms;
    if (fields->count != 1 || !field_number(field_take(fields), &grace_ms)) {
        client_send_error(client, frame->stream, "invalid", "how long the guest has is needed, in ms");
        return;
    }
    stop_in(grace_ms);
    client_send(client, REPLY, frame->stream, NULL, 0);
}

static bool take_number(struct fields *fields, uint64_t most, uint64_t *out)
{
    return field_number(field_take(fields), out) && *out <= most;
}

/* A program's number, then the fields of EXEC, of which the first are the options. */
static struct stream *open_background(struct client *client, uint32_t id, struct fields *fields, const char **why_not)
{
    uint64_t number;
    *why_not = "invalid";
    if (fields->count <= 5 || !take_number(fields, UINT32_MAX, &number) || number == 0)
        return NULL;
    struct fields command = *fields;
    if (has_option(field_take(&command), "arguments")) {
        *why_not = "too-long";
        return NULL;
    }
    return kept_start(client, id, (uint32_t)number, why_not);
}

static void run_in_background(struct client *client, const struct frame *frame, struct fields *fields)
{
    const char *why_not;
    struct stream *s = open_background(client, frame->stream, fields, &why_not);
    if (s == NULL) {
        client_send_error(client, frame->stream, why_not, "the program was not started in the background");
        return;
    }
    size_t mark = frame_begin(line_queue(), REQUEST, s->id);
    put_u8(line_queue(), OP_EXEC);
    buffer_add(line_queue(), fields->next, (size_t)(fields->end - fields->next));
    frame_end(line_queue(), mark);
}

/* A program that runs in the guest, and whose client has left it there, under a number of the agent's. */
static struct stream *open_left(struct client *client, uint32_t id, struct fields *fields, const char **why_not)
{
    uint64_t number;
    *why_not = "invalid";
    if (fields->count != 2 || !take_number(fields, UINT32_MAX, &number) || number == 0)
        return NULL;
    return kept_start(client, id, (uint32_t)number, why_not);
}

static void keep(struct client *client, const struct frame *frame, struct fields *fields)
{
    const char *why_not;
    struct stream *s = open_left(client, frame->stream, fields, &why_not);
    if (s == NULL) {
        client_send_error(client, frame->stream, why_not, "the program is not kept in the background");
        return;
    }
    size_t mark = frame_begin(line_queue(), REQUEST, s->id);
    put_u8(line_queue(), OP_TAKE);
    buffer_add(line_queue(), fields->next, (size_t)(fields->end - fields->next));
    frame_end(line_queue(), mark);
}

static void tell_output(struct client *client, const struct frame *frame, struct fields *fields)
{
    uint64_t number, from_out, from_err;
    if (fields->count != 3 || !take_number(fields, UINT32_MAX, &number) || !take_number(fields, INT64_MAX, &from_out) ||
        !take_number(fields, INT64_MAX, &from_err))
        client_send_error(client, frame->stream, "invalid", "a number and two places are needed");
    else if (!kept_tell(client, frame->stream, (uint32_t)number, from_out, from_err))
        client_send_error(client, frame->stream, "not-found", "no program has that number");
}

static void signal_kept(struct client *client, const struct frame *frame, struct fields *fields)
{
    uint64_t number, signal;
    bool is_read = fields->count == 2 && take_number(fields, UINT32_MAX, &number) && take_number(fields, 64, &signal);
    const struct stream *target = is_read ? kept_find((uint32_t)number) : NULL;
    if (target == NULL) {
        client_send_error(client, frame->stream, is_read ? "not-found" : "invalid", "no program of that number runs");
        return;
    }
    struct stream *s = open_stream(client, frame);
    if (s == NULL)
        return;
    size_t mark = frame_begin(line_queue(), REQUEST, s->id);
    put_u8(line_queue(), OP_KILL);
    put_number(line_queue(), target->id);
    put_number(line_queue(), (int64_t)signal);
    frame_end(line_queue(), mark);
}

static void answer_own(struct client *client, const struct frame *frame, struct fields *fields)
{
    if (frame->payload[0] == OP_STATUS)
        tell_status(client, frame);
    else if (frame->payload[0] == OP_RELEASE)
        release(client, frame, fields);
    else if (frame->payload[0] == OP_END)
        stop(client, frame, fields);
    else if (frame->payload[0] == OP_BACKGROUND)
        run_in_background(client, frame, fields);
    else if (frame->payload[0] == OP_OUTPUT)
        tell_output(client, frame, fields);
    else if (frame->payload[0] == OP_SIGNAL)
        signal_kept(client, frame, fields);
    else if (frame->payload[0] == OP_KEEP)
        keep(client, frame, fields);
    else
        client_send_error(client, frame->stream, "unsupported", "this broker does not know the request");
}

static enum rule rule_of(uint8_t opcode)
{
    return opcode < sizeof RULES ? RULES[opcode] : REFUSED_AS_UNKNOWN;
}

static const char *handle_request(struct client *client, const struct frame *frame)
{
    struct fields fields;
    if (frame->length < 1 || !fields_open(&fields, frame->payload + 1, frame->length - 1))
        return "a request that is not a list of fields";
    uint8_t opcode = frame->payload[0];
    if (frame->stream == 0 || (opcode != OP_HELLO && stream_of(client, frame->stream) != NULL))
        return "a stream number that is 0 or in use";
    if (opcode == OP_HELLO)
        return greet(client, frame, &fields);
    if (opcode >= OP_OWN) {
        answer_own(client, frame, &fields);
        return NULL;
    }
    switch (rule_of(opcode)) {
    case PASSED:
        pass(client, frame, NO_CHANNEL, NO_CHANNEL);
        break;
    case SENDING:
        pass(client, frame, CHANNEL_CONTENT, NO_CHANNEL);
        break;
    case RUNNING:
        run(client, frame, &fields);
        break;
    case AIMED:
        aim(client, frame, &fields);
        break;
    case OWNERS:
        client_send_error(client, frame->stream, "denied", "only the owner of a machine may ask for that");
        break;
    case REFUSED_AS_UNKNOWN:
        client_send_error(client, frame->stream, "unsupported", "this broker does not know the request");
    }
    return NULL;
}

static const char *handle_data(struct stream *s, const struct frame *frame)
{
    uint8_t channel = frame->payload[0];
    size_t length = frame->length - 1;
    if (channel != s->input || length > s->allowed[channel])
        return "data that was not allowed";
    s->allowed[channel] -= length;
    line_send(DATA, s->id, frame->payload, frame->length);
    return NULL;
}

static const char *handle_eof(struct stream *s, const struct frame *frame)
{
    if (frame->payload[0] != s->input)
        return "the end of a channel that has none";
    s->input = s->next_input;
    s->next_input = NO_CHANNEL;
    line_send(END_OF_FILE, s->id, frame->payload, frame->length);
    return NULL;
}

static bool is_sound(const struct frame *frame)
{
    size_t least = frame->kind == CREDIT ? 5 : 1;
    bool fits = frame->kind == DATA ? frame->length >= least : frame->length == least;
    return fits && frame->payload[0] < CHANNELS;
}

const char *handle_client_frame(struct client *client, const struct frame *frame)
{
    if (frame->kind == REQUEST)
        return handle_request(client, frame);
    bool may_come = frame->kind == DATA || frame->kind == END_OF_FILE || frame->kind == CREDIT;
    if (!may_come || !is_sound(frame))
        return "a frame the host may not send";
    struct stream *s = stream_of(client, frame->stream);
    /* The two sides may have crossed on the wire. */
    if (s == NULL)
        return NULL;
    if (frame->kind == DATA)
        return handle_data(s, frame);
    if (frame->kind == END_OF_FILE)
        return handle_eof(s, frame);
    stream_hold(s, frame->payload[0], read_u32(frame->payload + 1));
    return NULL;
}
