/* Owns a machine for many clients: it lives as long as this process does. See README.md. */
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../guest/number.h"
#include "../keeper/message.h"
#include "kept.h"
#include "owner.h"
#include "request.h"
#include "serve.h"

enum { START_LIMIT_MS = 60 * 1000, GREETING_LIMIT = 1024 };

/* What the former owner sends, once the machine waits at its keeper. */
struct start_message {
    uint8_t token[TOKEN_SIZE];
    uint64_t ttl_ms;
    uint64_t idle_ttl_ms;
    uint8_t greeting[GREETING_LIMIT];
} __attribute__((packed));

static bool read_descriptor(const char *text, int *out)
{
    uint64_t value;
    bool is_read = number_read(text, strlen(text), 10, INT_MAX, &value);
    *out = is_read ? (int)value : -1;
    return is_read;
}

/* The length of what came, or -1: whoever started this has ended, or waits for too long. */
static ssize_t receive_start(int start, struct start_message *into)
{
    struct pollfd ready = {start, POLLIN, 0};
    if (poll(&ready, 1, START_LIMIT_MS) != 1)
        return -1;
    ssize_t got = recv(start, into, sizeof *into, 0);
    return got > (ssize_t)offsetof(struct start_message, greeting) ? got : -1;
}

static _Noreturn void own(int start, int listener)
{
    struct start_message message;
    struct machine machine;
    send_answer(start, HELLO, (uint32_t)getpid(), NULL, 0);
    ssize_t got = receive_start(start, &message);
    if (got < 0)
        _exit(1);
    if (!kept_open() || !take_machine(message.token, &machine)) {
        send_answer(start, REFUSED, 0, NULL, 0);
        _exit(1);
    }
    explicit_bzero(message.token, sizeof message.token);
    request_set_greeting(message.greeting, (size_t)got - offsetof(struct start_message, greeting));
    send_answer(start, OK, 0, NULL, 0);
    serve(&machine, listener, start, (struct lifetime){message.ttl_ms, message.idle_ttl_ms});
}

int main(int argc, char **argv)
{
    int start, listener;
    if (argc != 4 || !read_descriptor(argv[1], &start) || !read_descriptor(argv[2], &listener) || chdir(argv[3]) != 0) {
        fputs("usage: broker START_FD LISTENER_FD FOLDER\n", stderr);
        return 2;
    }
    fcntl(listener, F_SETFL, O_NONBLOCK);
    /* Nobody waits for it: the process that starts it may end long before it, or long after. */
    pid_t child = fork();
    if (child != 0)
        return child < 0;
    prctl(PR_SET_NAME, "vmfork-broker");
    own(start, listener);
}
