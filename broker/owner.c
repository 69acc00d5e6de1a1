#include "owner.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "../keeper/message.h"

/* The other side of keeper/message.c. Sockets wait here: the keeper answers at once, and the poll bounds it. */

enum { ANSWER_LIMIT_MS = 10 * 1000 };

union control {
    char bytes[CMSG_SPACE(PASSED_LIMIT * sizeof(int))];
    struct cmsghdr align;
};

/* The path of a folder may be longer than an address: so the folder is the present one. */
static int connect_keeper(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "keeper.sock"};
    int keeper = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (keeper >= 0 && connect(keeper, (struct sockaddr *)&address, sizeof address) != 0) {
        close(keeper);
        return -1;
    }
    return keeper;
}

static bool send_request(int keeper, enum request kind, const uint8_t *token, uint64_t ttl_ms, const int *passed,
                         size_t count)
{
    struct request_message request = {.kind = (uint8_t)kind, .ttl_ms = ttl_ms};
    if (token != NULL)
        memcpy(request.token, token, TOKEN_SIZE);
    union control control;
    struct iovec piece = {&request, sizeof request};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (count > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *part = CMSG_FIRSTHDR(&message);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(part), passed, count * sizeof(int));
    }
    return sendmsg(keeper, &message, MSG_NOSIGNAL) == sizeof request;
}

/* Up to three descriptors, as `passed` says; -1 where there are fewer. */
static bool receive_ok(int keeper, int *passed)
{
    struct {
        uint8_t kind;
        uint32_t number;
    } __attribute__((packed)) answer;
    union control control;
    struct iovec piece = {&answer, sizeof answer};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct pollfd ready = {keeper, POLLIN, 0};
    for (size_t index = 0; index < PASSED_LIMIT; index++)
        passed[index] = -1;
    if (poll(&ready, 1, ANSWER_LIMIT_MS) != 1 || recvmsg(keeper, &message, MSG_CMSG_CLOEXEC) != sizeof answer)
        return false;
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    if (part != NULL && part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS) {
        size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(passed, CMSG_DATA(part), (count < PASSED_LIMIT ? count : PASSED_LIMIT) * sizeof(int));
    }
    return answer.kind == OK;
}

bool take_machine(const uint8_t *token, struct machine *into)
{
    int passed[PASSED_LIMIT];
    int keeper = connect_keeper();
    if (keeper < 0 || !send_request(keeper, TAKE, token, 0, NULL, 0) || !receive_ok(keeper, passed) || passed[0] < 0 ||
        passed[1] < 0 || !send_request(keeper, TAKEN, NULL, 0, NULL, 0))
        return false;
    *into = (struct machine){keeper, passed[0], passed[1], passed[2]};
    return true;
}

bool give_up_machine(const struct machine *machine, int log, const uint8_t *token, uint64_t ttl_ms)
{
    int left[PASSED_LIMIT] = {machine->line, machine->console, log}, none[PASSED_LIMIT];
    return send_request(machine->keeper, DETACH, token, ttl_ms, left, PASSED_LIMIT) &&
           receive_ok(machine->keeper, none);
}
