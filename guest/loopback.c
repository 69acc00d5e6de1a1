#include "loopback.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

union address {
    struct sockaddr any;
    struct sockaddr_in four;
    struct sockaddr_in6 six;
};

static socklen_t make_address(union address *a, int family, uint16_t port)
{
    *a = (union address){0};
    if (family == AF_INET) {
        a->four = (struct sockaddr_in){
            .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        return sizeof a->four;
    }
    a->six = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_loopback};
    return sizeof a->six;
}

int loopback_socket(int family)
{
    const int on = 1;
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

bool loopback_connect(int fd, int family, uint16_t port)
{
    union address to;
    socklen_t size = make_address(&to, family, port);
    return connect(fd, &to.any, size) == 0 || errno == EINPROGRESS || errno == EISCONN;
}

/* A port among those that the kernel gives out may be given to the very socket that looks for it. Then it is connected
 * to itself, which TCP allows, and nobody listens. */
static bool is_its_own_peer(int fd, uint16_t port)
{
    union address own = {0};
    socklen_t size = sizeof own;
    if (getsockname(fd, &own.any, &size) != 0)
        return false;
    return ntohs(own.any.sa_family == AF_INET ? own.four.sin_port : own.six.sin6_port) == port;
}

/* A second connect(2) tells what became of the first. */
bool loopback_is_connected(int fd, int family, uint16_t port)
{
    union address to;
    socklen_t size = make_address(&to, family, port);
    if (connect(fd, &to.any, size) != 0 && errno != EISCONN)
        return false;
    if (!is_its_own_peer(fd, port))
        return true;
    errno = ECONNREFUSED;
    return false;
}

void loopback_reset_on_close(int fd)
{
    const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
}
