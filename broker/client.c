#include "client.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

/* A client that reads never leaves this much. One that does not is given no more credit beyond the first figure; what
 * the guest may send it by then is bounded, and one that had more open than that would ever need is let go. */
enum { ROOM = 256 * 1024, BEYOND = 16 * 1024 * 1024, READ_SIZE = 65536 };

struct client clients[CLIENT_LIMIT];

void clients_init(void)
{
    for (int index = 0; index < CLIENT_LIMIT; index++)
        clients[index].socket = -1;
}

int clients_count(void)
{
    int count = 0;
    for (int index = 0; index < CLIENT_LIMIT; index++)
        count += clients[index].socket >= 0;
    return count;
}

struct client *client_add(int socket)
{
    for (int index = 0; index < CLIENT_LIMIT; index++) {
        if (clients[index].socket >= 0)
            continue;
        clients[index] = (struct client){.socket = socket};
        return &clients[index];
    }
    return NULL;
}

void client_remove(struct client *client)
{
    close(client->socket);
    buffer_free(&client->parser.held);
    buffer_free(&client->queue);
    *client = (struct client){.socket = -1};
}

bool client_has_room(const struct client *client)
{
    return buffer_length(&client->queue) < ROOM;
}

bool client_is_beyond(const struct client *client)
{
    return buffer_length(&client->queue) > BEYOND;
}

void client_send(struct client *client, uint8_t kind, uint32_t id, const uint8_t *payload, size_t length)
{
    size_t mark = frame_begin(&client->queue, kind, id);
    buffer_add(&client->queue, payload, length);
    frame_end(&client->queue, mark);
}

void client_send_error(struct client *client, uint32_t id, const char *code, const char *message)
{
    size_t mark = frame_begin(&client->queue, ERROR, id);
    put_text(&client->queue, code);
    put_text(&client->queue, message);
    put_number(&client->queue, 0);
    frame_end(&client->queue, mark);
}

void client_flush(struct client *client)
{
    struct buffer *queue = &client->queue;
    if (buffer_length(queue) > 0) {
        ssize_t sent = send(client->socket, buffer_head(queue), buffer_length(queue), MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent >= 0)
            buffer_take(queue, (size_t)sent);
        else
            client->is_gone |= errno != EAGAIN && errno != EINTR;
    }
    client->is_gone |= client_is_beyond(client) || (client->is_leaving && buffer_length(queue) == 0);
}

void client_read(struct client *client)
{
    struct buffer *held = &client->parser.held;
    buffer_take(held, 0);
    ssize_t got = recv(client->socket, buffer_room(held, READ_SIZE), READ_SIZE, MSG_DONTWAIT);
    if (got > 0)
        buffer_grow(held, (size_t)got);
    else
        client->is_gone |= got == 0 || (errno != EAGAIN && errno != EINTR);
}
