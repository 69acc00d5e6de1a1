#include "message.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

union control {
    char bytes[CMSG_SPACE(PASSED_LIMIT * sizeof(int))];
    struct cmsghdr align;
};

union answered {
    char bytes[CMSG_SPACE(ANSWERED_LIMIT * sizeof(int))];
    struct cmsghdr align;
};

/* The kernel puts all descriptors of a message into one part. False when there were more than we take: the part's
 * space is rounded up to 8 bytes, so that four arrive where three were expected. */
static bool take_passed(struct msghdr *message, struct received *into)
{
    struct cmsghdr *part = CMSG_FIRSTHDR(message);
    if (part == NULL || part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
        return true;
    int count = (int)((part->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    for (int index = 0; index < count; index++) {
        int descriptor;
        memcpy(&descriptor, CMSG_DATA(part) + (size_t)index * sizeof(int), sizeof descriptor);
        if (index < PASSED_LIMIT)
            into->passed[into->passed_count++] = descriptor;
        else
            close(descriptor);
    }
    return count <= PASSED_LIMIT;
}

enum outcome receive_request(int socket, struct received *into)
{
    union control control;
    struct iovec piece = {&into->request, sizeof into->request};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    into->passed_count = 0;
    ssize_t size = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size < 0)
        return errno == EAGAIN || errno == EINTR ? NOTHING : GONE;
    bool whole = take_passed(&message, into) && !(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC));
    if (size != sizeof into->request || !whole) {
        bool is_end = size == 0 && whole && into->passed_count == 0;
        close_all(into->passed, into->passed_count);
        into->passed_count = 0;
        return is_end ? GONE : MALFORMED;
    }
    return RECEIVED;
}

static bool send_with(int socket, void *bytes, size_t size, const int *passed, int count)
{
    union answered control;
    struct iovec piece = {bytes, size};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (count > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
        struct cmsghdr *part = CMSG_FIRSTHDR(&message);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
        memcpy(CMSG_DATA(part), passed, (size_t)count * sizeof(int));
    }
    return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size;
}

bool send_answer(int socket, enum answer kind, uint32_t number, const int *passed, int count)
{
    struct {
        uint8_t kind;
        uint32_t number;
    } __attribute__((packed)) answer = {kind, number};
    return send_with(socket, &answer, sizeof answer, passed, count);
}

bool send_opened(int socket, uint8_t sign, const int *passed, int count)
{
    return send_with(socket, &sign, sizeof sign, passed, count);
}

int receive_opened(int socket, uint8_t *sign, int *passed)
{
    struct received received = {0};
    union control control;
    struct iovec piece = {sign, sizeof *sign};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t size = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size < 0)
        return -1;
    if (take_passed(&message, &received) && size == 1 && !(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
        memcpy(passed, received.passed, sizeof received.passed);
        return received.passed_count;
    }
    close_all(received.passed, received.passed_count);
    return -1;
}

void close_all(int *descriptors, int count)
{
    for (int index = 0; index < count; index++) {
        if (descriptors[index] >= 0)
            close(descriptors[index]);
        descriptors[index] = -1;
    }
}
