#include "serve.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../keeper/clock.h"
#include "client.h"
#include "ending.h"
#include "halt.h"
#include "kept.h"
#include "line.h"
#include "release.h"
#include "reply.h"
#include "request.h"
#include "stream.h"

/* How it works. One poll waits for everything: the keeper, the line, the console, callers, clients, and the nearest
 * deadline. A round takes from each at most one read, so that nobody waits behind somebody who talks much; and it
 * begins with another client each time. The line is always read, since what the guest may send is bounded by its
 * credit. Clients are read while the line has room: what one of them sends faster stays in its socket, and stops it
 * there. */

enum { KEEPER, LINE, CONSOLE, LISTENER, STARTER, CLIENTS };
enum { READ_SIZE = 65536, LAST_PIECES = 32, STARTER_LIMIT_MS = 60 * 1000 };

static struct machine own;
static int listener_fd;
/* Whoever started it, until that is its client or has ended; then -1. */
static int starter_fd;
static struct lifetime life;
static int64_t ends_at, idle_ends_at;
static struct parser line;
static int first_client;

static int64_t earliest(int64_t one, int64_t other)
{
    return one < other ? one : other;
}

/* The last words of a guest tell why it ended. */
static _Noreturn void end_by_itself(void)
{
    for (int piece = 0; piece < LAST_PIECES && own.console >= 0; piece++)
        if (!log_drain(kept_console(), own.console, halt_look))
            own.console = -1;
    end_machine(stop_deadline() != NEVER ? "it was stopped" : "it ended by itself");
}

static _Noreturn void end_broken(const char *how)
{
    char reason[128];
    snprintf(reason, sizeof reason, "its guest sent %s", how);
    end_machine(reason);
}

static void read_line(void)
{
    struct frame frame;
    enum parsed parsed;
    buffer_take(&line.held, 0);
    ssize_t got = recv(own.line, buffer_room(&line.held, READ_SIZE), READ_SIZE, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
        end_by_itself();
    if (got > 0) {
        buffer_grow(&line.held, (size_t)got);
        line_note_received((size_t)got);
    }
    while ((parsed = parser_next(&line, &frame)) != PARSED_NOTHING) {
        const char *how = parsed == PARSED_FRAME ? handle_guest_frame(&frame) : "bytes that are no frame";
        if (how != NULL)
            end_broken(how);
    }
    buffer_take(&line.held, 0);
}

/* The keeper says nothing to an owner that asks nothing: it ends when the machine has. */
static void read_keeper(void)
{
    char byte;
    ssize_t got = recv(own.keeper, &byte, sizeof byte, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
        end_by_itself();
}

/* Its times begin when whoever wanted it has it: a start may take long on a busy host. */
static void see_off_starter(void)
{
    close(starter_fd);
    starter_fd = -1;
    ends_at = deadline_in(life.ttl_ms);
}

static void accept_client(void)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    int socket = accept4(listener_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (socket < 0)
        return;
    bool is_welcome = getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
                      (peer.uid == geteuid() || peer.uid == 0) && client_add(socket) != NULL;
    if (!is_welcome)
        close(socket);
}

static void break_off(struct client *client, uint32_t stream, const char *how)
{
    streams_abandon(client);
    client_send_error(client, stream, "protocol", how);
    client->is_leaving = true;
}

/* An answer may be thousands of times as long as what asks for it, so that one read is enough for gigabytes. */
static bool is_heard(const struct client *client)
{
    return client->socket >= 0 && !client->is_gone && !client->is_leaving && !client_is_beyond(client) &&
           !release_is_asked();
}

/* What is left is a part of a frame, unless the line has no room for more: then it is a backlog. */
static void handle_frames(struct client *client)
{
    struct frame frame;
    enum parsed parsed = PARSED_FRAME;
    while (is_heard(client) && line_has_room() && (parsed = parser_next(&client->parser, &frame)) != PARSED_NOTHING) {
        const char *how = parsed == PARSED_FRAME ? handle_client_frame(client, &frame) : "bytes that are no frame";
        if (how != NULL)
            break_off(client, frame.stream, how);
    }
    client->has_backlog = parsed != PARSED_NOTHING && buffer_length(&client->parser.held) > 0;
    buffer_take(&client->parser.held, 0);
}

static void serve_clients(const struct pollfd *polled)
{
    first_client = (first_client + 1) % CLIENT_LIMIT;
    for (int turn = 0; turn < CLIENT_LIMIT; turn++) {
        int index = (first_client + turn) % CLIENT_LIMIT;
        struct client *client = &clients[index];
        if (client->socket < 0)
            continue;
        /* Whoever has hung up wants no answer any more. */
        if (polled[CLIENTS + index].revents & (POLLHUP | POLLERR))
            client->is_gone = true;
        else if (polled[CLIENTS + index].revents & POLLIN)
            client_read(client);
        handle_frames(client);
    }
}

static void see_off(struct client *client)
{
    streams_abandon(client);
    release_forget(client);
    kept_forget(client);
    client_remove(client);
}

/* It is idle without a client and without a program in the background. */
static void watch_idleness(void)
{
    if (starter_fd >= 0 || clients_count() > 0 || kept_running() > 0)
        idle_ends_at = NEVER;
    else if (idle_ends_at == NEVER)
        idle_ends_at = deadline_in(life.idle_ttl_ms);
}

static void write_all(void)
{
    kept_notify();
    for (int index = 0; index < CLIENT_LIMIT; index++) {
        struct client *client = &clients[index];
        if (client->socket < 0)
            continue;
        client_flush(client);
        if (client->was_full && client_has_room(client)) {
            client->was_full = false;
            streams_release(client);
        }
        if (client->is_gone)
            see_off(client);
    }
    if (!line_flush())
        end_by_itself();
}

/* What waited for room on the line is taken up as soon as there is some. */
static bool has_work_left(void)
{
    for (int index = 0; index < CLIENT_LIMIT; index++)
        if (is_heard(&clients[index]) && clients[index].has_backlog && line_has_room())
            return true;
    return false;
}

static void check_deadlines(void)
{
    int64_t now = now_ms();
    if (now >= stop_deadline())
        end_machine("it was stopped");
    if (now >= halt_deadline() && halt_is_certain())
        end_machine("its guest halted");
    if (now >= ends_at)
        end_machine("its time to live is over");
    if (now >= idle_ends_at)
        end_machine("nobody used it for as long as it may be idle");
}

static short client_events(const struct client *client)
{
    bool is_read = is_heard(client) && !client->has_backlog && line_has_room();
    return (short)((is_read ? POLLIN : 0) | (buffer_length(&client->queue) > 0 ? POLLOUT : 0));
}

static void step(void)
{
    bool has_place = clients_count() < CLIENT_LIMIT && !release_is_asked();
    struct pollfd polled[CLIENTS + CLIENT_LIMIT] = {
        [KEEPER] = {own.keeper, POLLIN, 0},
        [LINE] = {own.line, (short)(POLLIN | (buffer_length(line_queue()) > 0 ? POLLOUT : 0)), 0},
        [CONSOLE] = {own.console, POLLIN, 0},
        [LISTENER] = {has_place ? listener_fd : -1, POLLIN, 0},
        [STARTER] = {starter_fd, POLLIN, 0},
    };
    for (int index = 0; index < CLIENT_LIMIT; index++)
        polled[CLIENTS + index] = (struct pollfd){clients[index].socket, client_events(&clients[index]), 0};
    int64_t asked = earliest(earliest(stop_deadline(), release_deadline()), halt_deadline());
    int64_t deadline = earliest(earliest(ends_at, idle_ends_at), asked);
    if (poll(polled, CLIENTS + CLIENT_LIMIT, has_work_left() ? 0 : wait_until(deadline)) < 0)
        return;
    if (polled[KEEPER].revents)
        read_keeper();
    if (polled[LINE].revents & ~POLLOUT)
        read_line();
    if (polled[CONSOLE].revents && !log_drain(kept_console(), own.console, halt_look))
        own.console = -1;
    serve_clients(polled);
    if (polled[LISTENER].revents)
        accept_client();
    if (polled[STARTER].revents)
        see_off_starter();
    write_all();
    watch_idleness();
    release_work(&own, &line);
    check_deadlines();
}

_Noreturn void serve(const struct machine *machine, int listener, int starter, struct lifetime lifetime)
{
    own = *machine;
    listener_fd = listener;
    starter_fd = starter;
    life = lifetime;
    /* A starter that stands still does not make it live for ever. */
    ends_at = life.ttl_ms > 0 ? deadline_in(life.ttl_ms + STARTER_LIMIT_MS) : NEVER;
    idle_ends_at = NEVER;
    clients_init();
    watch_idleness();
    line_open(own.line);
    while (true)
        step();
}
