/* Owners and callers that nobody trusts, to the keeper: a target of libFuzzer, and of replay.c.
 *
 * An input is a list of acts, each a byte for what is done, one for who does it, and what belongs to it:
 *
 *     0  the owner says      number of descriptors passed, length, and so many bytes
 *     1  a caller says       the same
 *     2  a caller comes
 *     3  the owner goes
 *     4  a caller goes
 *     5  the guest writes to its console
 *     6  the emulator says, as it starts, the same as the owner in 0
 *
 * After each the keeper takes a step. When it is done nothing may be open that was not before. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/un.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "acts.h"

#define poll poll_now
#define _exit(status) longjmp(way_out, 1)
#define fprintf say_nothing
#include "watch.c"
#undef poll
#undef _exit
#undef fprintf

enum { MOST_CALLERS = 10, MOST_PASSED = 6 };
enum act { OWNER_SAYS, CALLER_SAYS, CALLER_COMES, OWNER_GOES, CALLER_GOES, GUEST_WRITES, EMULATOR_SAYS, ACTS };

static int our_owner, our_emulator, our_console, their_console, log_file;
static int our_callers[MOST_CALLERS];
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static socklen_t address_size;

static void say(int socket)
{
    int passed[MOST_PASSED], count = take() % (MOST_PASSED + 1);
    size_t size = take() % 64;
    if (size > input.left)
        size = input.left;
    /* The kind of descriptors that an owner passes, so that what it may say comes up early. */
    for (int i = 0; i < count; i++)
        passed[i] = i == 2 ? log_file : their_console;
    union {
        char bytes[CMSG_SPACE(sizeof passed)];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec piece = {(void *)(uintptr_t)input.next, size};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE((size_t)count * sizeof *passed);
        struct cmsghdr *part = CMSG_FIRSTHDR(&message);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN((size_t)count * sizeof *passed);
        memcpy(CMSG_DATA(part), passed, (size_t)count * sizeof *passed);
    }
    if (socket >= 0)
        sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    input.next += size;
    input.left -= size;
}

static void come(int *caller)
{
    release(caller);
    *caller = must(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (connect(*caller, (struct sockaddr *)&address, address_size) != 0)
        release(caller);
}

static void act(void)
{
    int what = take() % ACTS;
    int *caller = &our_callers[take() % MOST_CALLERS];
    switch (what) {
    case OWNER_SAYS:
        say(our_owner);
        break;
    case CALLER_SAYS:
        say(*caller);
        break;
    case CALLER_COMES:
        come(caller);
        break;
    case OWNER_GOES:
        release(&our_owner);
        break;
    case CALLER_GOES:
        release(caller);
        break;
    case GUEST_WRITES:
        if (write(our_console, "line\n", 5) < 0)
            break;
        break;
    case EMULATOR_SAYS:
        say(our_emulator);
        break;
    }
}

static void open_all(void)
{
    int owner[2], emulator[2], console[2];
    must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, owner));
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, console));
    must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, emulator));
    our_owner = owner[0];
    our_emulator = emulator[0];
    our_console = console[0];
    their_console = console[1];
    log_file = must(open("/dev/null", O_WRONLY | O_CLOEXEC));
    kept = (struct kept){.process = must(eventfd(0, EFD_CLOEXEC)), .owner = owner[1], .listener = -1, .lock = -1};
    /* A program of our own: what it has not sent itself is opened of it. */
    kept.program = getpid();
    kept.memory = (struct memory){.line = emulator[1], .opened = {-1, -1, -1}};
    kept.beside = (struct beside){.process = -1, .lease = -1, .line = -1, .deadline = NEVER};
    kept.listener = must(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    /* A name of the kernel's own choice. */
    address_size = sizeof address;
    must(bind(kept.listener, (struct sockaddr *)&address, sizeof address.sun_family));
    must(listen(kept.listener, MOST_CALLERS));
    must(getsockname(kept.listener, (struct sockaddr *)&address, &address_size));
    for (int i = 0; i < MOST_CALLERS; i++)
        our_callers[i] = -1;
    for (int i = 0; i < CALLER_LIMIT; i++)
        callers[i].socket = -1;
    state = OWNED;
    deadline = NEVER;
}

static void close_everything(void)
{
    int all[] = {our_owner,    our_emulator,  our_console, their_console, log_file,
                 kept.process, kept.listener, kept.owner,  owner_process, kept.memory.line};
    close_all(all, sizeof all / sizeof *all);
    owner_process = -1;
    close_all(parked, PASSED_LIMIT);
    close_all(kept.memory.opened, OPENED_LIMIT);
    close_all(our_callers, MOST_CALLERS);
    for (int i = 0; i < CALLER_LIMIT; i++)
        release(&callers[i].socket);
}

static int lowest_free(void)
{
    int descriptor = must(open("/dev/null", O_RDONLY | O_CLOEXEC));
    close(descriptor);
    return descriptor;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    input.next = bytes;
    input.left = size;
    int before = lowest_free();
    open_all();
    if (setjmp(way_out) == 0) {
        watch_owner(kept.owner);
        while (input.left > 0) {
            act();
            step();
        }
    }
    close_everything();
    if (lowest_free() != before)
        abort();
    return 0;
}
