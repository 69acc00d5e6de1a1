/* The agent: init of a guest, a service under another init, or a process on a socket in a test. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cgroup.h"
#include "connection.h"
#include "fatal.h"
#include "init.h"
#include "launch.h"
#include "mode.h"
#include "notify.h"
#include "number.h"
#include "port.h"
#include "stream.h"
#include "version.h"

/* Stream 0 does not exist, so its tokens are free for the two descriptors that belong to no stream. */
enum { TOKEN_LINE = 0, TOKEN_CHILDREN = 1, MOST_EVENTS = 64, MOST_SIGNAL = 64 };

/* So many rounds may go by before the host is told that its bytes were used up, where nothing else is sent to it. */
enum { OWED_ROUNDS = 8 };

/* What Linux gives a process at most (fs.nr_open), unless it was told otherwise. */
enum { LARGEST_DESCRIPTOR = 1 << 20 };

struct mode mode = {.root = ""};

static _Noreturn void usage(void)
{
    fputs("usage: vmfork-agent [--version] [--fd N [--root DIR] [--privileged]]\n", stderr);
    exit(2);
}

static int descriptor_of(const char *text)
{
    uint64_t value;
    if (!number_read(text, strlen(text), 10, LARGEST_DESCRIPTOR, &value))
        usage();
    return (int)value;
}

static void end_process(void)
{
    exit(0);
}

/* The kernel may hand init arguments of its own, so init looks at none. Returns the socket, or -1. */
static int read_arguments(int argc, char **argv)
{
    int fd = -1;
    bool told = false;
    for (int i = 1; i < argc && !mode.is_init; i++) {
        if (strcmp(argv[i], "--version") == 0) {
            puts("vmfork-agent " AGENT_VERSION " protocol " TEXT(PROTOCOL));
            exit(0);
        }
        if (strcmp(argv[i], "--privileged") == 0)
            told = true;
        else if (strcmp(argv[i], "--fd") == 0 && i + 1 < argc)
            fd = descriptor_of(argv[++i]);
        else if (strcmp(argv[i], "--root") == 0 && i + 1 < argc)
            mode.root = argv[++i];
        else
            usage();
    }
    mode.privileged = fd < 0 || told;
    mode.power_off = fd < 0 ? init_power_off : end_process;
    return fd;
}

/* With 0 to 2 taken, no pipe to a process gets one of these numbers. */
static void fill_stdio(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    while (fd >= 0 && fd <= 2);
    if (fd > 2)
        close(fd);
}

/* Programs get default signals, whatever we were started with. A pipe whose reader is gone is an error of write. */
static int take_signals(void)
{
    sigset_t child;
    for (int i = 1; i < MOST_SIGNAL; i++)
        signal(i, SIG_DFL);
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_SETMASK, &child, NULL);
    int fd = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0)
        fatal_errno("cannot take signals");
    return fd;
}

/* Edge-triggered: a port without a client reports a hang-up for as long as that lasts. */
static void watch(int epoll, int fd, uint64_t token)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u64 = token};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        fatal_errno("cannot watch the line");
}

/* Every child, orphans that are given to this process as init among them. */
static void note_children(int signals)
{
    struct signalfd_siginfo told[8];
    while (read(signals, told, sizeof told) > 0)
        ;
    int status;
    struct rusage used;
    pid_t pid;
    while ((pid = wait4(-1, &status, WNOHANG, &used)) > 0)
        streams_child_ended(pid, status, &used);
    cgroups_sweep();
}

static void note_event(const struct epoll_event *event, int signals)
{
    if (event->data.u64 == TOKEN_LINE)
        connection_event(event->events);
    else if (event->data.u64 == TOKEN_CHILDREN)
        note_children(signals);
    else
        streams_event(event->data.u64);
}

/* Credit that is owed goes out with an answer. Where none comes, it is told once nothing has happened for a while; and
 * where something always does, such as a program that writes on and on, after some rounds: it stays owed for no longer.
 */
static void settle(bool is_idle)
{
    static int rounds;
    rounds = streams_owe() ? rounds + 1 : 0;
    if (is_idle || rounds > OWED_ROUNDS)
        streams_settle();
}

static _Noreturn void serve(int line, enum line kind)
{
    int signals = take_signals();
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        fatal_errno("cannot make an epoll");
    watch(epoll, line, TOKEN_LINE);
    watch(epoll, signals, TOKEN_CHILDREN);
    streams_open(epoll);
    connection_open(line, kind);
    for (bool busy = true;;) {
        struct epoll_event events[MOST_EVENTS];
        int count = epoll_wait(epoll, events, MOST_EVENTS, busy ? 0 : streams_owe() ? OWED_MS : -1);
        if (count < 0 && errno != EINTR)
            fatal_errno("cannot wait for events");
        for (int i = 0; i < count; i++)
            note_event(&events[i], signals);
        settle(count == 0 && !busy);
        busy = connection_work();
    }
}

static void own_socket(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) != 0)
        fatal_errno("cannot use the socket");
}

int main(int argc, char **argv)
{
    mode.is_init = getpid() == 1;
    int socket = read_arguments(argc, argv);
    if (mode.is_init)
        init_machine();
    fill_stdio();
    launch_raise_limit();
    if (socket < 0) {
        watchers_make();
        serve(port_open("vmfork.agent.0"), LINE_PORT);
    }
    own_socket(socket);
    serve(socket, LINE_SOCKET);
}
