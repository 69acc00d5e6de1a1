/* What is open on the line, and for which client. */
#ifndef VMFORK_STREAM_H
#define VMFORK_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client.h"

enum { CHANNEL_CONTENT = 0, CHANNEL_ARGUMENTS = 3, CHANNELS = 4, NO_CHANNEL = 0xFF };

/* One request, from its frame to the REPLY or ERROR that closes it. Credit bounds both directions:
 *
 *   client --CREDIT--> held --(while the client reads)--> expected --DATA--> client
 *   agent  --CREDIT--> allowed --DATA of the client--> agent
 */
struct stream {
    /* Its number on the line; 0 where nothing is open. */
    uint32_t id;
    /* The client's number for it. */
    uint32_t client_id;
    /* NULL where its client has left, or it is the broker's own: what comes is thrown away. */
    struct client *client;
    /* It is a program's, and one's that runs in the background. */
    bool is_program;
    bool is_kept;
    /* It is a connection at a port of the guest, or waits for such, or for what programs ask. */
    bool is_tunnel;
    /* The one channel on which the client may send, and the one that it may use after that one's end. */
    uint8_t input;
    uint8_t next_input;
    /* What the guest may still send, and what of the client's credit was not passed on yet. */
    uint64_t expected[CHANNELS];
    uint64_t held[CHANNELS];
    /* What the client may still send. */
    uint64_t allowed[CHANNELS];
};

/* NULL when too many are open. The agent has a lower limit of its own. */
struct stream *stream_new(struct client *client, uint32_t client_id);
/* By the number on the line; NULL for one that is not open. */
struct stream *stream_find(uint32_t id);
/* By a client's number. */
struct stream *stream_of(const struct client *client, uint32_t client_id);
void stream_close(struct stream *s);

/* How many are open. */
int streams_count(void);
/* The programs that run, those in the background too. */
int streams_count_programs(void);

/* The client allows more on a channel, some of it now and the rest once it has read. */
void stream_hold(struct stream *s, uint8_t channel, uint32_t bytes);
/* The client reads: what was held back is allowed. */
void streams_release(const struct client *client);
/* The guest sent `length` bytes on the channel. False when it was not allowed to. */
bool stream_spend(struct stream *s, uint8_t channel, size_t length);

/* What the client had open is being ended in the guest. What is still to come of it is allowed, and thrown away. */
void streams_abandon(const struct client *client);
/* The clients are told that their connections to ports were reset; in the guest they are about to be. */
void streams_reset_tunnels(void);
/* Something of a client is open that is not a connection to a port: nothing runs because of those. */
bool streams_are_in_use(void);

#endif
