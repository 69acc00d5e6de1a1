/* Runs a program and keeps it: it lives as long as somebody owns it. See README.md. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "confine.h"
#include "message.h"
#include "rate.h"
#include "watch.h"

enum { NOT_STARTED = 126, NOT_FOUND = 127 };

static int fail(const char *what)
{
    fprintf(stderr, "vmfork-keeper: %s: %s\n", what, strerror(errno));
    return NOT_STARTED;
}

static int usage(void)
{
    fputs("usage: keeper OWNER_FD LISTENER_FD LOCK_FD --|--confined PROGRAM [ARGUMENT]...\n       keeper tsc-rate\n",
          stderr);
    return NOT_STARTED;
}

/* False for anything but digits, or "-1", which says that there is none. */
static bool read_descriptor(const char *text, int *out)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    *out = (int)value;
    return (isdigit((unsigned char)*text) || *text == '-') && *end == 0 && errno == 0 && value >= -1 &&
           value <= INT_MAX;
}

static int compare(const void *one, const void *other)
{
    return *(const int *)one - *(const int *)other;
}

/* Whatever else was open belongs to the program. */
static void close_others(struct kept kept)
{
    int kept_open[] = {2, kept.process, kept.owner, kept.listener, kept.lock};
    int count = sizeof kept_open / sizeof *kept_open;
    qsort(kept_open, (size_t)count, sizeof(int), compare);
    for (int index = 0; index < count; index++) {
        unsigned next = index + 1 < count ? (unsigned)kept_open[index + 1] : UINT_MAX;
        if (kept_open[index] >= 2 && next > (unsigned)kept_open[index] + 1)
            syscall(SYS_close_range, (unsigned)kept_open[index] + 1, next == UINT_MAX ? next : next - 1, 0);
    }
}

/* Process listings show what it is, and the program's arguments once only. */
static void rename_self(char **argv, int argc, pid_t program)
{
    char *end = argv[argc - 1] + strlen(argv[argc - 1]);
    memset(argv[0], 0, (size_t)(end - argv[0]));
    snprintf(argv[0], (size_t)(end - argv[0]), "vmfork-keeper %d", program);
    prctl(PR_SET_NAME, "vmfork-keeper");
}

static void keep_from_program(struct kept kept)
{
    int own[] = {kept.owner, kept.listener, kept.lock};
    for (int index = 0; index < 3; index++)
        if (own[index] >= 0)
            fcntl(own[index], F_SETFD, FD_CLOEXEC);
}

/* "--" and "--confined" stand before the program. */
static bool read_mode(const char *text, bool *confined)
{
    *confined = strcmp(text, "--confined") == 0;
    return *confined || strcmp(text, "--") == 0;
}

int main(int argc, char **argv)
{
    struct kept kept;
    bool confined;
    int start[2] = {-1, -1};
    if (argc == 2 && strcmp(argv[1], "tsc-rate") == 0)
        return print_rate();
    if (argc < 6 || !read_mode(argv[4], &confined) || !read_descriptor(argv[1], &kept.owner) ||
        !read_descriptor(argv[2], &kept.listener) || !read_descriptor(argv[3], &kept.lock))
        return usage();
    pid_t program = getpid();
    kept.process = (int)syscall(SYS_pidfd_open, program, 0);
    if (kept.process < 0)
        return fail("pidfd_open");
    if (confined && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, start) != 0)
        return fail("socketpair");
    /* A sister of the program and not its child: who started the program reaps both. */
    long keeper = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
    if (keeper < 0)
        return fail("clone");
    if (keeper == 0) {
        /* First of all: who started us must know whom to reap, whatever becomes of the program. */
        send_answer(kept.owner, HELLO, (uint32_t)getpid(), NULL, 0);
        setsid();
        rename_self(argv, argc, program);
        if (confined) {
            close(start[1]);
            allow_start(start[0], kept.process);
        }
        close_others(kept);
        watch(kept);
    }
    keep_from_program(kept);
    if (confined && !confine_self(start[1]))
        return fail("cannot confine the program");
    execvp(argv[5], &argv[5]);
    fprintf(stderr, "vmfork-keeper: cannot run %s: %s\n", argv[5], strerror(errno));
    return NOT_FOUND;
}
