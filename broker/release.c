#include "release.h"

#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "../keeper/clock.h"
#include "../keeper/message.h"
#include "ending.h"
#include "kept.h"
#include "line.h"
#include "stream.h"

/* Whoever asked has this long to take the machine over, and killed programs have so long to be gone before that. */
enum { TAKE_LIMIT_MS = 30 * 1000, QUIET_LIMIT_MS = 5 * 1000 };

static struct client *asking;
static uint32_t asked_by;
static uint8_t asked_token[TOKEN_SIZE];
static int64_t give_up_at = NEVER;
static int64_t stop_at = NEVER;

void release_ask(struct client *client, uint32_t id, const uint8_t *token)
{
    asking = client;
    asked_by = id;
    memcpy(asked_token, token, TOKEN_SIZE);
    give_up_at = deadline_in(QUIET_LIMIT_MS);
}

bool release_is_asked(void)
{
    return asking != NULL;
}

void release_forget(const struct client *client)
{
    if (asking != client)
        return;
    asking = NULL;
    give_up_at = NEVER;
}

int64_t release_deadline(void)
{
    return give_up_at;
}

/* The next owner starts between two frames, in both directions, and no number of ours is open. */
static bool is_quiet(const struct parser *line)
{
    return streams_count() == 0 && buffer_length(line_queue()) == 0 && buffer_length(&line->held) == 0;
}

void release_work(const struct machine *machine, const struct parser *line)
{
    if (asking == NULL)
        return;
    if (is_quiet(line)) {
        if (!give_up_machine(machine, kept_console()->file, asked_token, TAKE_LIMIT_MS))
            end_machine("its keeper did not take it back");
        client_send(asking, REPLY, asked_by, NULL, 0);
        client_flush(asking);
        _exit(0);
    }
    if (now_ms() >= give_up_at) {
        client_send_error(asking, asked_by, "busy", "what was ended in the guest is not gone yet");
        release_forget(asking);
    }
}

void stop_in(uint64_t grace_ms)
{
    struct stream *s = grace_ms > 0 ? stream_new(NULL, 0) : NULL;
    const uint8_t shutdown = OP_SHUTDOWN;
    if (s != NULL)
        line_send(REQUEST, s->id, &shutdown, sizeof shutdown);
    stop_at = s != NULL ? deadline_in(grace_ms) : now_ms();
}

int64_t stop_deadline(void)
{
    return stop_at;
}
