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
#include "jail.h"
#include "memory.h"
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
    fputs("usage: keeper OWNER_FD LISTENER_FD LOCK_FD [--confined] [--root FOLDER] [--bind PATH]... [--mapped]\n"
          "              [--outward] [--group FOLDER]... [--user ID] [--lease FD] [--file-mib N]\n"
          "              [--memory FD] [--hold FD]... [--beside FD --monitor PATH]\n"
          "              [--beside-lease FD] -- PROGRAM [ARGUMENT]...\n"
          "       keeper tsc-rate\n"
          "       keeper nothing\n",
          stderr);
    return NOT_STARTED;
}

/* False for anything but digits, or "-1", which says that there is none. */
static bool read_number(const char *text, long most, long *out)
{
    char *end;
    errno = 0;
    *out = strtol(text, &end, 10);
    return (isdigit((unsigned char)*text) || *text == '-') && *end == 0 && errno == 0 && *out >= -1 && *out <= most;
}

static bool read_descriptor(const char *text, int *out)
{
    long value;
    bool read = read_number(text, INT_MAX, &value);
    *out = (int)value;
    return read;
}

static int compare(const void *one, const void *other)
{
    return *(const int *)one - *(const int *)other;
}

/* Whatever else was open belongs to the program. */
static void close_others(struct kept kept)
{
    const struct memory *memory = &kept.memory;
    int kept_open[] = {2,
                       kept.process,
                       kept.owner,
                       kept.listener,
                       kept.lock,
                       kept.lease,
                       memory->line,
                       memory->held[0],
                       memory->held[1],
                       kept.beside.process,
                       kept.beside.lease};
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
    int own[] = {kept.owner,       kept.listener,       kept.lock,        kept.lease,
                 kept.memory.line, kept.beside.process, kept.beside.lease};
    for (int index = 0; index < (int)(sizeof own / sizeof *own); index++)
        if (own[index] >= 0)
            fcntl(own[index], F_SETFD, FD_CLOEXEC);
}

/* How the program is started. */
struct start {
    bool confined;
    bool jailed;
    struct jail jail;
    char **program;
};

/* Where the arguments are, other text is about to be. */
static const char *copy_path(const char *path)
{
    static char copies[GROUP_LIMIT + 1][PATH_MAX];
    static int count;
    return count > GROUP_LIMIT || strlen(path) >= PATH_MAX ? NULL : strcpy(copies[count++], path);
}

static bool add_group(struct groups *groups, const char *folder)
{
    if (groups->count == GROUP_LIMIT || (folder = copy_path(folder)) == NULL)
        return false;
    groups->folders[groups->count++] = folder;
    return true;
}

static bool add_held(struct memory *memory, const char *value)
{
    return memory->held_count < HELD_LIMIT && read_descriptor(value, &memory->held[memory->held_count++]);
}

/* Those about the program's memory, and about what stands beside it, put it into nothing; one gives it more. */
static bool is_of_jail(const char *option)
{
    static const char *const others[] = {"--memory", "--hold", "--beside", "--beside-lease", "--monitor", "--file-mib"};
    for (int index = 0; index < (int)(sizeof others / sizeof *others); index++)
        if (strcmp(option, others[index]) == 0)
            return false;
    return true;
}

/* Reads one option with its value; false for what is none. */
static bool read_option(const char *name, const char *value, struct start *start, struct kept *kept)
{
    struct jail *jail = &start->jail;
    if (strcmp(name, "--root") == 0)
        jail->root = value;
    else if (strcmp(name, "--bind") == 0 && jail->bound_count < BOUND_LIMIT)
        jail->bound[jail->bound_count++] = value;
    else if (strcmp(name, "--group") == 0)
        return add_group(&kept->groups, value);
    else if (strcmp(name, "--user") == 0)
        return read_number(value, INT_MAX, &jail->user);
    else if (strcmp(name, "--file-mib") == 0)
        return read_number(value, INT_MAX, &jail->file_mib);
    else if (strcmp(name, "--lease") == 0)
        return read_descriptor(value, &kept->lease);
    else if (strcmp(name, "--memory") == 0)
        return read_descriptor(value, &kept->memory.line);
    else if (strcmp(name, "--hold") == 0)
        return add_held(&kept->memory, value);
    else if (strcmp(name, "--beside") == 0)
        return read_descriptor(value, &kept->beside.process);
    else if (strcmp(name, "--monitor") == 0)
        return (kept->beside.monitor = copy_path(value)) != NULL;
    else if (strcmp(name, "--beside-lease") == 0)
        return read_descriptor(value, &kept->beside.lease);
    else
        return false;
    return true;
}

/* The options up to "--", and what stands behind it: at least a program. */
static bool read_options(char **argv, struct start *start, struct kept *kept)
{
    kept->lease = start->jail.user = -1;
    kept->groups.count = 0;
    kept->beside = (struct beside){.process = -1, .lease = -1, .monitor = NULL};
    kept->memory = (struct memory){.line = -1, .opened = {-1, -1, -1}, .held = {-1, -1}};
    for (; *argv != NULL && strcmp(*argv, "--") != 0; argv++) {
        start->jailed |= is_of_jail(*argv);
        if (strcmp(*argv, "--confined") == 0)
            start->confined = true;
        else if (strcmp(*argv, "--mapped") == 0)
            start->jail.mapped = true;
        else if (strcmp(*argv, "--outward") == 0)
            start->jail.outward = true;
        else if (argv[1] == NULL || !read_option(*argv, argv[1], start, kept))
            return false;
        else
            argv++;
    }
    start->program = argv + 1;
    return argv[0] != NULL && argv[1] != NULL;
}

/* What the keeper does until the program has ended. */
static _Noreturn void keep(struct kept kept, bool confined, const int ends[2])
{
    setsid();
    if (confined) {
        close(ends[1]);
        allow_start(ends[0], kept.process);
    }
    close_others(kept);
    watch(kept);
}

/* The program, in all that was asked for; or an exit status, and what failed was printed. */
static int become_program(const struct start *start, int keeper)
{
    const char *failed = start->jailed ? enter_jail(&start->jail) : NULL;
    if (failed != NULL) {
        fprintf(stderr, "vmfork-keeper: cannot contain the program: %s: %s\n", failed, strerror(errno));
        return NOT_STARTED;
    }
    if (start->confined && !confine_self(keeper, start->jail.outward))
        return fail("cannot confine the program");
    execvp(start->program[0], start->program);
    fprintf(stderr, "vmfork-keeper: cannot run %s: %s\n", start->program[0], strerror(errno));
    return NOT_FOUND;
}

int main(int argc, char **argv)
{
    struct kept kept;
    static struct start start;
    int ends[2] = {-1, -1};
    if (argc == 2 && strcmp(argv[1], "tsc-rate") == 0)
        return print_rate();
    if (argc == 2 && strcmp(argv[1], "nothing") == 0)
        return 0;
    if (argc < 6 || !read_descriptor(argv[1], &kept.owner) || !read_descriptor(argv[2], &kept.listener) ||
        !read_descriptor(argv[3], &kept.lock) || !read_options(argv + 4, &start, &kept))
        return usage();
    kept.program = getpid();
    kept.process = (int)syscall(SYS_pidfd_open, kept.program, 0);
    if (kept.process < 0)
        return fail("pidfd_open");
    if (start.confined && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return fail("socketpair");
    if (kept.memory.line >= 0)
        memory_lend_folder(kept.memory.line);
    /* A sister of the program and not its child: who started the program reaps both. */
    long keeper = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
    if (keeper < 0)
        return fail("clone");
    if (keeper == 0) {
        /* First of all: who started us must know whom to reap, whatever becomes of the program. */
        send_answer(kept.owner, HELLO, (uint32_t)getpid(), NULL, 0);
        rename_self(argv, argc, kept.program);
        keep(kept, start.confined, ends);
    }
    keep_from_program(kept);
    return become_program(&start, ends[1]);
}
