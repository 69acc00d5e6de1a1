/* The clients: each a connection with what it sent so far and what waits for it. */
#ifndef VMFORK_CLIENT_H
#define VMFORK_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../guest/frame.h"

enum { CLIENT_LIMIT = 64 };

struct client {
    /* -1 where there is none. */
    int socket;
    struct parser parser;
    struct buffer queue;
    /* It was sent its last frame, and goes once it has it. */
    bool is_leaving;
    /* Nothing more is had from it or given to it; it is removed at the end of the round. */
    bool is_gone;
    /* Frames of it wait for room on the line. */
    bool has_backlog;
    /* So much waits for it that no more credit was passed on. */
    bool was_full;
};

extern struct client clients[CLIENT_LIMIT];

void clients_init(void);
int clients_count(void);
/* One more; NULL when there are as many as there can be. */
struct client *client_add(int socket);
/* Its connection is closed and its memory given back. What it had open is not this module's. */
void client_remove(struct client *client);

/* Less waits for the client than what stops its credit. */
bool client_has_room(const struct client *client);
/* More waits for it than any client that reads leaves. It is gone with the next flush. */
bool client_is_beyond(const struct client *client);

/* The frame waits for the client. */
void client_send(struct client *client, uint8_t kind, uint32_t id, const uint8_t *payload, size_t length);
void client_send_error(struct client *client, uint32_t id, const char *code, const char *message);
/* What can be written is written. One that leaves more unread than any that reads ever would is gone. */
void client_flush(struct client *client);
/* What it sent is in its parser. */
void client_read(struct client *client);

#endif
