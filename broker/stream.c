#include "stream.h"

#include "line.h"

/* Each open stream is one slot. Its number on the line is made of the slot and of how often that was used, so that a
 * frame which crossed the end of a stream finds nothing. */

/* Clients take half of the slots: each of their streams may need another, to be ended by. */
enum { SLOT_BITS = 12, SLOTS = 1 << SLOT_BITS, TURNS = 1 << 19 };
enum { FIRST_CREDIT = 65536, WINDOW = 1024 * 1024, LEAST_GRANT = 16 * 1024, PLENTY = 0x7FFFFFFF };

static struct stream streams[SLOTS];
static uint32_t turns[SLOTS];
/* No slot from here on was ever used. */
static size_t used;

struct stream *stream_new(struct client *client, uint32_t client_id)
{
    size_t slot = 0;
    if (client != NULL && streams_count() >= SLOTS / 2)
        return NULL;
    while (slot < used && streams[slot].id != 0)
        slot++;
    if (slot == SLOTS)
        return NULL;
    used = slot == used ? used + 1 : used;
    turns[slot] = (turns[slot] + 1) % TURNS;
    struct stream *s = &streams[slot];
    *s = (struct stream){.id = (turns[slot] << SLOT_BITS | (uint32_t)slot) + 1,
                         .client = client,
                         .client_id = client_id,
                         .input = NO_CHANNEL,
                         .next_input = NO_CHANNEL};
    for (size_t channel = 0; channel < CHANNELS; channel++)
        s->expected[channel] = s->allowed[channel] = FIRST_CREDIT;
    return s;
}

struct stream *stream_find(uint32_t id)
{
    struct stream *s = &streams[(id - 1) % SLOTS];
    return id != 0 && s->id == id ? s : NULL;
}

struct stream *stream_of(const struct client *client, uint32_t client_id)
{
    for (size_t slot = 0; slot < used; slot++)
        if (streams[slot].id != 0 && streams[slot].client == client && streams[slot].client_id == client_id)
            return &streams[slot];
    return NULL;
}

void stream_close(struct stream *s)
{
    s->id = 0;
    while (used > 0 && streams[used - 1].id == 0)
        used--;
}

int streams_count(void)
{
    int count = 0;
    for (size_t slot = 0; slot < used; slot++)
        count += streams[slot].id != 0;
    return count;
}

int streams_count_programs(void)
{
    int count = 0;
    for (size_t slot = 0; slot < used; slot++)
        count += streams[slot].id != 0 && streams[slot].is_program;
    return count;
}

/* Few large pieces: a piece for each frame would cost the guest more than it allows. */
static void pass_on(struct stream *s, uint8_t channel)
{
    uint64_t room = s->expected[channel] < WINDOW ? WINDOW - s->expected[channel] : 0;
    uint64_t size = s->held[channel] < room ? s->held[channel] : room;
    if (size == 0 || (size < s->held[channel] && size < LEAST_GRANT))
        return;
    if (s->client != NULL && !client_has_room(s->client)) {
        s->client->was_full = true;
        return;
    }
    s->held[channel] -= size;
    s->expected[channel] += size;
    line_send_credit(s->id, channel, (uint32_t)size);
}

void stream_hold(struct stream *s, uint8_t channel, uint32_t bytes)
{
    if (s->held[channel] <= UINT64_MAX / 2)
        s->held[channel] += bytes;
    pass_on(s, channel);
}

void streams_release(const struct client *client)
{
    for (size_t slot = 0; slot < used; slot++)
        for (uint8_t channel = 0; channel < CHANNELS && streams[slot].client == client; channel++)
            if (streams[slot].id != 0)
                pass_on(&streams[slot], channel);
}

bool stream_spend(struct stream *s, uint8_t channel, size_t length)
{
    if (length > s->expected[channel])
        return false;
    s->expected[channel] -= length;
    pass_on(s, channel);
    return true;
}

/* The agent closes the stream once what a killed program wrote was sent. */
static void abandon(struct stream *s)
{
    s->client = NULL;
    struct stream *kill = stream_new(NULL, 0);
    if (kill != NULL)
        line_send_kill(kill->id, s->id);
    for (uint8_t channel = 0; channel < CHANNEL_ARGUMENTS; channel++) {
        s->expected[channel] += PLENTY;
        s->held[channel] = 0;
        line_send_credit(s->id, channel, PLENTY);
    }
}

void streams_reset_tunnels(void)
{
    size_t before = used;
    for (size_t slot = 0; slot < before; slot++) {
        struct stream *s = &streams[slot];
        if (s->id == 0 || s->client == NULL || !s->is_tunnel)
            continue;
        client_send_error(s->client, s->client_id, "reset", "connections are reset when the machine gets an owner");
        abandon(s);
    }
}

bool streams_are_in_use(void)
{
    for (size_t slot = 0; slot < used; slot++)
        if (streams[slot].id != 0 && streams[slot].client != NULL && !streams[slot].is_tunnel)
            return true;
    return false;
}

void streams_abandon(const struct client *client)
{
    size_t before = used;
    for (size_t slot = 0; slot < before; slot++)
        if (streams[slot].id != 0 && streams[slot].client == client)
            abandon(&streams[slot]);
}
