#include "loopback.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
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

static void set_option(int fd, int level, int name)
{
    const int on = 1;
    setsockopt(fd, level, name, &on, sizeof on);
}

int loopback_socket(int family)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0)
        set_option(fd, IPPROTO_TCP, TCP_NODELAY);
    return fd;
}

bool loopback_is_own(uint32_t address)
{
    return address >> IN_CLASSA_NSHIFT == IN_LOOPBACKNET;
}

int loopback_listen(uint32_t address, uint16_t port)
{
    union address at;
    socklen_t size = make_address(&at, AF_INET, port);
    at.four.sin_addr.s_addr = htonl(address);
    int fd = loopback_socket(AF_INET);
    if (fd < 0)
        return -1;
    /* Connections of the last who listened there may hold the port for a minute. */
    set_option(fd, SOL_SOCKET, SO_REUSEADDR);
    if (bind(fd, &at.any, size) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

int loopback_accept(int fd)
{
    int caller = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (caller >= 0)
        set_option(caller, IPPROTO_TCP, TCP_NODELAY);
    return caller;
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
