#include "watch.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"
#include "message.h"

/* How it works. One poll waits for everything: the program's end, the owner's socket and the owner's end, callers, the
 * console while nobody reads it, and the nearest deadline. `state` is what README.md draws; what the owner says moves
 * it from OWNED to PARKED, a caller with the token to OFFERED, and the caller's word, now the owner, back to OWNED.
 * Every other way out is `end`. */

enum { CALLER_LIMIT = 8, LOG_LIMIT = 128 * 1024 };
enum { CONFIRM_LIMIT_MS = 5000, CALL_LIMIT_MS = 5000 };
enum { PROCESS, OWNER, OWNER_PROCESS, LISTENER, CONSOLE, OPENED, BESIDE, MONITOR, CALLERS };

static enum { OWNED, PARKED, OFFERED } state = OWNED;
static struct kept kept;
static int owner_process = -1;
static uint8_t token[TOKEN_SIZE];
static int64_t deadline = NEVER;
/* What an owner passed on: the line to the agent, the console, and the log the console goes to while nobody owns. */
static int parked[PASSED_LIMIT] = {-1, -1, -1};
static int64_t logged;
static struct {
    int socket;
    int64_t deadline;
} callers[CALLER_LIMIT];

static void release(int *descriptor)
{
    close_all(descriptor, 1);
}

static _Noreturn void leave(void)
{
    beside_end(&kept.beside);
    groups_remove(&kept.groups);
    _exit(0);
}

/* The lock is held by this process, so it is free only when nothing of the machine is left. */
static _Noreturn void end(const char *reason)
{
    fprintf(stderr, "vmfork-keeper: %s; the machine is ended\n", reason);
    syscall(SYS_pidfd_send_signal, kept.process, SIGKILL, NULL, 0);
    struct pollfd ended = {kept.process, POLLIN, 0};
    while (poll(&ended, 1, -1) < 0)
        ;
    leave();
}

/* The socket alone does not tell of the owner's end: a child that it forked holds a copy of it. */
static void watch_owner(int socket)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    kept.owner = socket;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        return;
    owner_process = (int)syscall(SYS_pidfd_open, peer.pid, 0);
    if (owner_process < 0 && errno == ESRCH)
        end("its owner has ended");
}

static void park(struct received *received)
{
    memcpy(parked, received->passed, sizeof parked);
    memcpy(token, received->request.token, TOKEN_SIZE);
    deadline = deadline_in(received->request.ttl_ms);
    logged = 0;
    state = PARKED;
    /* What an owner that is gone by now asked for is done all the same. */
    send_answer(kept.owner, OK, 0, NULL, 0);
    release(&kept.owner);
    release(&owner_process);
}

static void confirm(void)
{
    close_all(parked, PASSED_LIMIT);
    explicit_bzero(token, sizeof token);
    deadline = NEVER;
    state = OWNED;
}

static void read_owner(void)
{
    struct received received;
    enum outcome outcome = receive_request(kept.owner, &received);
    if (outcome == NOTHING)
        return;
    if (outcome == GONE)
        end(state == OWNED ? "its owner is gone" : "who took it over is gone");
    if (outcome == RECEIVED && state == OWNED && received.request.kind == DETACH &&
        received.passed_count == PASSED_LIMIT) {
        park(&received);
        return;
    }
    if (outcome == RECEIVED)
        close_all(received.passed, received.passed_count);
    if (outcome == RECEIVED && state == OFFERED && received.request.kind == TAKEN)
        confirm();
    else if (state == OFFERED)
        end("who took it over did not confirm it");
    else
        send_answer(kept.owner, BAD, 0, NULL, 0);
}

static int find_free_caller(void)
{
    for (int index = 0; index < CALLER_LIMIT; index++)
        if (callers[index].socket < 0)
            return index;
    return -1;
}

static void accept_caller(void)
{
    int socket = accept4(kept.listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (socket < 0)
        return;
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.uid != geteuid()) {
        close(socket);
        return;
    }
    int index = find_free_caller();
    callers[index].socket = socket;
    callers[index].deadline = now_ms() + CALL_LIMIT_MS;
}

static bool offer(int socket)
{
    int passed[] = {parked[0], parked[1], kept.lock};
    if (!send_answer(socket, OK, 0, passed, kept.lock < 0 ? 2 : 3))
        return false;
    deadline = now_ms() + CONFIRM_LIMIT_MS;
    state = OFFERED;
    watch_owner(socket);
    return true;
}

static void read_caller(int *caller)
{
    struct received received;
    enum outcome outcome = receive_request(*caller, &received);
    if (outcome == NOTHING)
        return;
    if (outcome == RECEIVED)
        close_all(received.passed, received.passed_count);
    if (outcome == RECEIVED && received.request.kind == TAKE) {
        if (state != PARKED)
            send_answer(*caller, BUSY, 0, NULL, 0);
        else if (memcmp(received.request.token, token, TOKEN_SIZE) != 0)
            send_answer(*caller, REFUSED, 0, NULL, 0);
        else if (offer(*caller)) {
            *caller = -1;
            return;
        }
    } else if (outcome == RECEIVED && received.request.kind == MEMORY)
        memory_answer(&kept.memory, *caller, kept.program);
    else if (outcome != GONE)
        send_answer(*caller, BAD, 0, NULL, 0);
    release(caller);
}

/* A guest whose console nobody reads would stand still at its next line. */
static void drain_console(void)
{
    char text[8192];
    ssize_t size = recv(parked[1], text, sizeof text, MSG_DONTWAIT);
    if (size == 0)
        release(&parked[1]);
    if (size <= 0)
        return;
    if (logged + size > LOG_LIMIT) {
        if (ftruncate(parked[2], 0) < 0)
            return;
        logged = 0;
    }
    if (write(parked[2], text, (size_t)size) > 0)
        logged += size;
}

static int wait_ms(void)
{
    int64_t next = deadline;
    for (int index = 0; index < CALLER_LIMIT; index++)
        if (callers[index].socket >= 0 && callers[index].deadline < next)
            next = callers[index].deadline;
    return wait_until(next < kept.beside.deadline ? next : kept.beside.deadline);
}

static void check_deadlines(void)
{
    int64_t now = now_ms();
    if (now >= deadline)
        end(state == PARKED ? "its time to live is over" : "who took it over did not confirm it in time");
    for (int index = 0; index < CALLER_LIMIT; index++)
        if (callers[index].socket >= 0 && now >= callers[index].deadline)
            release(&callers[index].socket);
    beside_check_deadline(&kept.beside);
}

static void step(void)
{
    struct pollfd polled[CALLERS + CALLER_LIMIT] = {
        [PROCESS] = {kept.process, POLLIN, 0},
        [OWNER] = {kept.owner, POLLIN, 0},
        [OWNER_PROCESS] = {owner_process, POLLIN, 0},
        [LISTENER] = {find_free_caller() < 0 ? -1 : kept.listener, POLLIN, 0},
        [CONSOLE] = {state == PARKED ? parked[1] : -1, POLLIN, 0},
        [OPENED] = {kept.memory.line, POLLIN, 0},
        [BESIDE] = {kept.beside.process, POLLIN, 0},
        [MONITOR] = {kept.beside.line, POLLIN, 0},
    };
    for (int index = 0; index < CALLER_LIMIT; index++)
        polled[CALLERS + index] = (struct pollfd){callers[index].socket, POLLIN, 0};
    if (poll(polled, CALLERS + CALLER_LIMIT, wait_ms()) < 0)
        return;
    if (polled[PROCESS].revents)
        leave();
    /* What an owner said before it ended still counts, so its end is looked at once its socket has no more to say. */
    if (polled[OWNER].revents)
        read_owner();
    else if (polled[OWNER_PROCESS].revents)
        end("its owner has ended");
    if (polled[OPENED].revents)
        memory_receive(&kept.memory);
    if (polled[BESIDE].revents)
        beside_tell(&kept.beside);
    if (polled[MONITOR].revents)
        beside_read(&kept.beside);
    if (polled[CONSOLE].revents)
        drain_console();
    for (int index = 0; index < CALLER_LIMIT; index++)
        if (polled[CALLERS + index].revents)
            read_caller(&callers[index].socket);
    if (polled[LISTENER].revents)
        accept_caller();
    check_deadlines();
}

_Noreturn void watch(struct kept given)
{
    kept = given;
    kept.beside.line = -1;
    kept.beside.deadline = NEVER;
    if (!groups_join(&kept.groups, kept.program) || !beside_join(&kept.beside, &kept.groups)) {
        fprintf(stderr, "vmfork-keeper: cannot contain the program: a control group of its own: %s\n", strerror(errno));
        end("it cannot be limited");
    }
    watch_owner(kept.owner);
    for (int index = 0; index < CALLER_LIMIT; index++)
        callers[index].socket = -1;
    while (true)
        step();
}
