/* Bytes of a host that nobody trusts, to the agent's parser and all that answers: a target of libFuzzer, and of
 * replay.c.
 *
 * The first byte says in pieces of how many bytes the others come. What they ask for is done. So the process has
 * another root, the folder in VMFORK_FUZZ_ROOT, and is nobody while it answers; it has a network of its own, no program
 * is there, and what was made is taken away behind each input. */
#include <ftw.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* With its statics: the parser, and what is done with each frame. */
#include "connection.c"

enum { ROUNDS = 8, MOST_FILE = 4 * 1024 * 1024, MOST_TOLD = 64, NOBODY = 65534, SKIPPED = 77 };

static const char *const FOLDERS[] = {"/w", "/etc", "/run", "/run/vmfork"};

struct mode mode = {.root = ""};
static int epoll = -1;
static bool is_root;

static _Noreturn void skip(const char *what)
{
    perror(what);
    exit(SKIPPED);
}

static void nothing(void)
{
}

static void make_folders(void)
{
    for (size_t i = 0; i < sizeof FOLDERS / sizeof *FOLDERS; i++)
        if ((mkdir(FOLDERS[i], 0777) != 0 && errno != EEXIST) || chmod(FOLDERS[i], 0777) != 0)
            skip(FOLDERS[i]);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    const char *root = getenv("VMFORK_FUZZ_ROOT");
    is_root = geteuid() == 0;
    /* A network of its own: CONNECT would lead to the services of the host. */
    if (root == NULL || unshare(is_root ? CLONE_NEWNET : CLONE_NEWUSER | CLONE_NEWNET) != 0)
        skip("another root is needed: be root, or allow user namespaces, and say VMFORK_FUZZ_ROOT");
    if (chroot(root) != 0 || chdir("/") != 0 || (is_root && setgroups(0, NULL) != 0))
        skip(root);
    umask(0);
    make_folders();
    struct rlimit small = {MOST_FILE, MOST_FILE};
    setrlimit(RLIMIT_FSIZE, &small);
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    mode.power_off = nothing;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    streams_open(epoll);
    return 0;
}

static int take_away(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st;
    (void)type;
    for (size_t i = 0; i < sizeof FOLDERS / sizeof *FOLDERS; i++)
        if (at->level == 0 || strcmp(path, FOLDERS[i]) == 0)
            return 0;
    (void)remove(path);
    return 0;
}

static void become(uid_t user)
{
    if (is_root && seteuid(user) != 0)
        abort();
}

static void note_children(void)
{
    int status;
    struct rusage used;
    pid_t pid;
    while ((pid = wait4(-1, &status, WNOHANG, &used)) > 0)
        streams_child_ended(pid, status, &used);
}

static void note_events(void)
{
    struct epoll_event events[MOST_TOLD];
    int count = epoll_wait(epoll, events, MOST_TOLD, 0);
    for (int i = 0; i < count; i++)
        streams_event(events[i].data.u64);
}

static void serve(void)
{
    bool moved = true;
    for (int i = 0; i < ROUNDS && moved; i++) {
        note_events();
        note_children();
        moved = streams_pump();
        buffer_take(outbox(), buffer_length(outbox()));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    if (size == 0)
        return 0;
    size_t piece = bytes[0] ? bytes[0] : size;
    become(NOBODY);
    for (size_t at = 1; at < size; at += piece) {
        buffer_add(&parser.held, bytes + at, size - at < piece ? size - at : piece);
        handle_frames();
        buffer_take(&parser.held, 0);
        serve();
    }
    forget_client();
    note_children();
    become(0);
    buffer_free(&parser.held);
    parser.lost = mode.is_ending = false;
    for (size_t i = 0; i < sizeof FOLDERS / sizeof *FOLDERS; i++)
        nftw(FOLDERS[i], take_away, 8, FTW_DEPTH | FTW_PHYS);
    return 0;
}
