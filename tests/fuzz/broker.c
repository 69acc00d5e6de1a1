/* Clients, a guest and a keeper that nobody trusts, to the broker: a target of libFuzzer, and of replay.c.
 *
 * An input is a list of acts, each a byte for what is done, one for who does it, and what belongs to it:
 *
 *     0  a client comes
 *     1  a client says         length, and so many bytes
 *     2  a client asks         kind and number of a frame, length, and so many bytes for its payload
 *     3  the guest says        length, and so many bytes
 *     4  the guest answers     kind, slot and turn of a stream on the line, length, and so many bytes for the payload
 *     5  a client goes
 *     6  the guest prints      length, and so many bytes
 *     7  somebody reads what the broker wrote: a client, or the agent
 *     8  time passes           so many quarters of a second
 *     9  the keeper says       one byte; or goes, where that is 0
 *    10  the starter goes
 *
 * After each the broker takes a step. When it is done nothing may be open that was not before. It works in the folder
 * VMFORK_FUZZ_ROOT. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "acts.h"

/* Time passes when the input says so. */
static int64_t clock_ms;

#define poll poll_now
#define _exit(status) longjmp(way_out, 1)
#define fprintf say_nothing
/* With their statics, which begin anew with each input. Two names are in two of them. */
#define LEAST_GRANT KEPT_LEAST_GRANT
#include "kept.c"
#undef LEAST_GRANT
#include "stream.c"
#define ANSWER_LIMIT_MS HALT_ANSWER_LIMIT_MS
#include "halt.c"
#undef ANSWER_LIMIT_MS
#include "ending.c"
#include "owner.c"
#include "release.c"
#include "serve.c"
#undef poll
#undef _exit
#undef fprintf

int64_t now_ms(void)
{
    return clock_ms;
}

int64_t deadline_in(uint64_t ms)
{
    return ms > 0 && ms < (uint64_t)INT64_MAX / 2 ? clock_ms + (int64_t)ms : NEVER;
}

int wait_until(int64_t deadline)
{
    return deadline == NEVER ? -1 : 0;
}

enum { MOST_CLIENTS = 6, MOST_SAID = 255, QUARTER_MS = 250, TTL_MS = 600 * 1000, IDLE_TTL_MS = 60 * 1000 };
enum act {
    CLIENT_COMES,
    CLIENT_SAYS,
    CLIENT_ASKS,
    GUEST_SAYS,
    GUEST_ANSWERS,
    CLIENT_GOES,
    GUEST_PRINTS,
    SOMEBODY_READS,
    TIME_PASSES,
    KEEPER_SAYS,
    STARTER_GOES,
    ACTS
};

static int our_keeper, our_line, our_console, our_starter;
static int our_clients[MOST_CLIENTS];
static struct sockaddr_un address;
static socklen_t address_size;

static void release(int *descriptor)
{
    if (*descriptor >= 0)
        close(*descriptor);
    *descriptor = -1;
}

static void say(int socket, const uint8_t *head, size_t head_size)
{
    uint8_t said[FRAME_HEADER + MOST_SAID];
    size_t size = take();
    size = size > input.left ? input.left : size;
    if (head_size > 0) {
        uint32_t length = (uint32_t)size;
        for (int i = 0; i < 4; i++)
            said[i] = (uint8_t)(length >> (24 - 8 * i));
        memcpy(said + 4, head, head_size);
        head_size += 4;
    }
    memcpy(said + head_size, input.next, size);
    input.next += size;
    input.left -= size;
    if (socket >= 0)
        (void)!send(socket, said, head_size + size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* A frame's kind and the number of its stream, as they follow the length. */
static void say_frame(int socket, uint8_t kind, uint32_t id)
{
    uint8_t head[] = {kind, (uint8_t)(id >> 24), (uint8_t)(id >> 16), (uint8_t)(id >> 8), (uint8_t)id};
    say(socket, head, sizeof head);
}

static void read_away(int socket)
{
    static uint8_t bytes[65536];
    while (socket >= 0 && recv(socket, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        ;
}

static void come(int *client)
{
    release(client);
    *client = must(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (connect(*client, (struct sockaddr *)&address, address_size) != 0)
        release(client);
}

static void act(void)
{
    int what = take() % ACTS;
    uint8_t who = take();
    int *client = &our_clients[who % MOST_CLIENTS];
    uint8_t kind;
    switch (what) {
    case CLIENT_COMES:
        come(client);
        break;
    case CLIENT_SAYS:
        say(*client, NULL, 0);
        break;
    case CLIENT_ASKS:
        kind = take();
        say_frame(*client, kind, take());
        break;
    case GUEST_SAYS:
        say(our_line, NULL, 0);
        break;
    case GUEST_ANSWERS:
        kind = take();
        say_frame(our_line, kind, ((uint32_t)(who / 8 + 1) << SLOT_BITS | who % 8) + 1);
        break;
    case CLIENT_GOES:
        release(client);
        break;
    case GUEST_PRINTS:
        say(our_console, NULL, 0);
        break;
    case SOMEBODY_READS:
        read_away(who % (MOST_CLIENTS + 1) == MOST_CLIENTS ? our_line : our_clients[who % (MOST_CLIENTS + 1)]);
        break;
    case TIME_PASSES:
        clock_ms += (int64_t)who * QUARTER_MS;
        break;
    case KEEPER_SAYS:
        if (who == 0)
            release(&our_keeper);
        else
            (void)!send(our_keeper, &who, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        break;
    case STARTER_GOES:
        release(&our_starter);
        break;
    }
}

static void open_pair(int kind, int *mine, int *brokers)
{
    int ends[2];
    must(socketpair(AF_UNIX, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends));
    *mine = ends[0];
    *brokers = ends[1];
}

static void open_all(void)
{
    static const uint8_t GREETING[] = {1, 0, 0, 0, '1'};
    struct machine machine = {.lock = -1};
    clock_ms = 1;
    open_pair(SOCK_SEQPACKET, &our_keeper, &machine.keeper);
    open_pair(SOCK_STREAM, &our_line, &machine.line);
    open_pair(SOCK_STREAM, &our_console, &machine.console);
    open_pair(SOCK_SEQPACKET, &our_starter, &starter_fd);
    own = machine;
    listener_fd = must(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    /* A name of the kernel's own choice. */
    address = (struct sockaddr_un){.sun_family = AF_UNIX};
    address_size = sizeof address;
    must(bind(listener_fd, (struct sockaddr *)&address, sizeof address.sun_family));
    must(listen(listener_fd, MOST_CLIENTS));
    must(getsockname(listener_fd, (struct sockaddr *)&address, &address_size));
    for (int i = 0; i < MOST_CLIENTS; i++)
        our_clients[i] = -1;
    request_set_greeting(GREETING, sizeof GREETING);
    if (!kept_open())
        must(-1);
    life = (struct lifetime){TTL_MS, IDLE_TTL_MS};
    ends_at = deadline_in(life.ttl_ms + STARTER_LIMIT_MS);
    idle_ends_at = NEVER;
    clients_init();
    line_open(own.line);
}

static void close_ours(void)
{
    /* The last of them were not shown to the broker as ended. */
    int all[] = {our_keeper, our_line,    our_console, our_starter, own.keeper,
                 own.line,   own.console, listener_fd, starter_fd};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        release(&all[i]);
    for (int i = 0; i < MOST_CLIENTS; i++)
        release(&our_clients[i]);
}

/* As a new process finds it. */
static void forget_all(void)
{
    for (int i = 0; i < CLIENT_LIMIT; i++)
        if (clients[i].socket >= 0)
            see_off(&clients[i]);
    for (int slot = 0; slot <= MOST; slot++)
        for (int log = 0; log < 2 && kept[slot].is_used; log++)
            log_close(&kept[slot].logs[log]);
    memset(kept, 0, sizeof kept);
    memset(waiters, 0, sizeof waiters);
    memset(streams, 0, sizeof streams);
    memset(turns, 0, sizeof turns);
    used = matched = 0;
    has_news = false;
    asked = 0;
    answer_by = give_up_at = stop_at = NEVER;
    asking = NULL;
    first_client = 0;
    buffer_free(&line.held);
    line.lost = false;
    buffer_free(line_queue());
}

static void empty(const char *name)
{
    DIR *folder = opendir(name);
    struct dirent *entry;
    while (folder != NULL && (entry = readdir(folder)) != NULL)
        if (unlinkat(dirfd(folder), entry->d_name, 0) != 0)
            continue;
    if (folder != NULL)
        closedir(folder);
}

static int lowest_free(void)
{
    int descriptor = must(open("/dev/null", O_RDONLY | O_CLOEXEC));
    close(descriptor);
    return descriptor;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    const char *root = getenv("VMFORK_FUZZ_ROOT");
    if (root == NULL || (mkdir(root, 0700) != 0 && errno != EEXIST))
        must(-1);
    char folder[4096];
    snprintf(folder, sizeof folder, "%s/broker", root);
    if ((mkdir(folder, 0700) != 0 && errno != EEXIST) || chdir(folder) != 0)
        must(-1);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    input.next = bytes;
    input.left = size;
    int before = lowest_free();
    open_all();
    if (setjmp(way_out) == 0)
        while (input.left > 0) {
            act();
            step();
        }
    close_ours();
    forget_all();
    empty("programs");
    empty(".");
    if (lowest_free() != before)
        abort();
    return 0;
}
