/* Loaded into passt before its own libraries. It keeps what a guest sends from the host's loopback. See README.md. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "given.h"

/* What the program finds here in place of its libc's; all else is ours alone. It has a name of our own in C, since each
 * libc declares these with types of its own. */
#define IN_PLACE_OF(name) __asm__(name) __attribute__((visibility("default")))

int fenced_connect(int fd, const struct sockaddr *to, socklen_t size) IN_PLACE_OF("connect");
ssize_t fenced_sendto(int fd, const void *bytes, size_t count, int flags, const struct sockaddr *to, socklen_t size)
    IN_PLACE_OF("sendto");
ssize_t fenced_sendmsg(int fd, const struct msghdr *message, int flags) IN_PLACE_OF("sendmsg");
int fenced_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags) IN_PLACE_OF("sendmmsg");
int fenced_bind(int fd, const struct sockaddr *at, socklen_t size) IN_PLACE_OF("bind");
int fenced_getsockname(int fd, struct sockaddr *at, socklen_t *size) IN_PLACE_OF("getsockname");
int fenced_listen(int fd, int backlog) IN_PLACE_OF("listen");
int fenced_wait(int fd, struct epoll_event *events, int most, int timeout_ms) IN_PLACE_OF("epoll_wait");

/* How it works. passt makes a socket for each connection and each port of its guest, and says in a few calls of libc
 * where that leads. The answers here are libc's, but for addresses that are this host's own business. Whoever has taken
 * passt over goes around all of it: then there is passt's own sandbox. */

/* The descriptors of a passt: two for each connection. Its log has what it says as it starts. */
enum { DESCRIPTORS = 4096, LOG_BYTES = 64 << 10 };
/* The first byte of an IPv4 address: this host as who sends (RFC 1122, 3.2.1.3), and the loopback. Linux leads both to
 * itself. */
enum { THIS_HOST = 0, LOOPBACK = 127 };
enum { DNS = 53 };

static struct given given;
/* It is told at standard input, which passt never reads: whatever else it was not told of, it closes as it begins
 * (since 2024). */
static bool is_coming_up;

static void lower(int what, rlim_t most)
{
    struct rlimit now;
    if (getrlimit(what, &now) != 0 || now.rlim_max <= most)
        return;
    now.rlim_cur = now.rlim_max = most;
    setrlimit(what, &now);
}

/* Only here does the descriptor that passt is told of come to be: a passt that does not load this has no guest. It is
 * made anew after each execve, by which passt becomes the one that is built for this processor. Who tells nothing asks
 * whether this is loaded at all. */
__attribute__((constructor)) static void begin(void)
{
    given = read_given();
    if (given.passed < 0 || dup3(given.passed, given.told, O_CLOEXEC) < 0 || dup2(given.ready, STDIN_FILENO) < 0)
        _exit(EXIT_FAILURE);
    is_coming_up = true;
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    lower(RLIMIT_CORE, 0);
    lower(RLIMIT_FSIZE, LOG_BYTES);
    lower(RLIMIT_NOFILE, DESCRIPTORS);
}

static int protocol_of(int fd)
{
    int protocol = -1;
    socklen_t size = sizeof protocol;
    return getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) == 0 ? protocol : -1;
}

/* Whether something may be sent there. Without an address it goes where the socket was connected to. */
static bool is_let(int fd, const void *address, socklen_t size)
{
    struct sockaddr_in to;
    if (address == NULL || size < sizeof to)
        return address == NULL;
    memcpy(&to, address, sizeof to);
    if (to.sin_family != AF_INET)
        return false;
    uint32_t where = ntohl(to.sin_addr.s_addr);
    if (where >> 24 != LOOPBACK && where >> 24 != THIS_HOST)
        return true;
    return given.resolver != 0 && where == given.resolver && ntohs(to.sin_port) == DNS &&
           protocol_of(fd) == IPPROTO_UDP;
}

static int refuse(void)
{
    errno = ENETUNREACH;
    return -1;
}

int fenced_connect(int fd, const struct sockaddr *to, socklen_t size)
{
    return is_let(fd, to, size) ? (int)syscall(SYS_connect, fd, to, size) : refuse();
}

ssize_t fenced_sendto(int fd, const void *bytes, size_t count, int flags, const struct sockaddr *to, socklen_t size)
{
    return is_let(fd, to, size) ? syscall(SYS_sendto, fd, bytes, count, flags, to, size) : refuse();
}

ssize_t fenced_sendmsg(int fd, const struct msghdr *message, int flags)
{
    return is_let(fd, message->msg_name, message->msg_namelen) ? syscall(SYS_sendmsg, fd, message, flags) : refuse();
}

/* Of several it sends those before the first that may not be sent, as the kernel does. */
int fenced_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    unsigned let = 0;
    while (let < count && is_let(fd, messages[let].msg_hdr.msg_name, messages[let].msg_hdr.msg_namelen))
        let++;
    return let > 0 || count == 0 ? (int)syscall(SYS_sendmmsg, fd, messages, let, flags) : refuse();
}

/* The port that passt asked for, of each datagram socket (in the order of a network); its descriptors are no more. */
static in_port_t asked[DESCRIPTORS];

static bool is_of_datagrams(int fd, const struct sockaddr *at, socklen_t size)
{
    return size >= sizeof(struct sockaddr_in) && at->sa_family == AF_INET && protocol_of(fd) == IPPROTO_UDP &&
           fd < DESCRIPTORS;
}

/* A port that a guest sends datagrams from would be taken on this host: it gets one that the kernel chooses. passt
 * binds a socket of TCP to see whether somebody listens there, and one of ICMP for the number of an echo. */
int fenced_bind(int fd, const struct sockaddr *at, socklen_t size)
{
    struct sockaddr_in own;
    if (!is_of_datagrams(fd, at, size))
        return (int)syscall(SYS_bind, fd, at, size);
    memcpy(&own, at, sizeof own);
    asked[fd] = own.sin_port;
    own.sin_port = 0;
    return (int)syscall(SYS_bind, fd, &own, sizeof own);
}

/* Since 2025 passt looks where such a socket was bound, and gives up what is not where it asked for. */
int fenced_getsockname(int fd, struct sockaddr *at, socklen_t *size)
{
    int failed = (int)syscall(SYS_getsockname, fd, at, size);
    if (failed == 0 && is_of_datagrams(fd, at, *size))
        memcpy((char *)at + offsetof(struct sockaddr_in, sin_port), &asked[fd], sizeof asked[fd]);
    return failed;
}

/* Nothing leads into a guest by its card. */
int fenced_listen(int fd, int backlog)
{
    (void)fd, (void)backlog;
    errno = EACCES;
    return -1;
}

/* By its first wait it has come up: sockets, sandbox and filter are made. */
int fenced_wait(int fd, struct epoll_event *events, int most, int timeout_ms)
{
    if (is_coming_up) {
        ssize_t told = write(STDIN_FILENO, "", 1);
        (void)told;
        is_coming_up = false;
    }
    return (int)syscall(SYS_epoll_pwait, fd, events, most, timeout_ms, NULL, 0);
}
