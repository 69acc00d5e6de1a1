/* Copies a machine that runs: its memory into one file, the state of its devices into another. See README.md. */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "copy.h"
#include "monitor.h"
#include "pages.h"
#include "pause.h"

/* A machine whose program writes faster than we copy has what is left copied in the pause. */
enum { ROUNDS = 4, FEW_PAGES = 64, ASK_LIMIT_MS = 10000 };

static int fail(const char *what, const char *why)
{
    dprintf(STDOUT_FILENO, "failed %s: %s\n", what, why);
    return 1;
}

/* False for anything but digits, or "-1", which says that there is none. */
static bool read_number(const char *text, int64_t most, int64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoll(text, &end, 10);
    return (isdigit((unsigned char)*text) || *text == '-') && *end == 0 && errno == 0 && *out >= -1 && *out <= most;
}

static bool read_descriptors(char **argv, int *into, int count)
{
    for (int index = 0; index < count; index++) {
        int64_t value;
        if (argv[index] == NULL || !read_number(argv[index], INT_MAX, &value))
            return false;
        into[index] = (int)value;
    }
    return true;
}

/* Where the emulator has the machine's memory: one piece, whatever the machine sees of it. */
static bool find_memory(struct memory *m, int64_t size)
{
    static const char SIGN[] = " is 0x";
    const char *said = monitor_ask("{\"execute\": \"human-monitor-command\", \"arguments\": {\"command-line\": "
                                   "\"gpa2hva 0\"}}",
                                   ASK_LIMIT_MS);
    const char *address = said == NULL ? NULL : strstr(said, SIGN);
    if (address == NULL)
        return false;
    char *end;
    errno = 0;
    int64_t start = strtoll(address + sizeof SIGN - 1, &end, 16);
    if (errno != 0 || start <= 0 || start % PAGE != 0)
        return false;
    m->all = (struct run){(uint64_t)start, (uint64_t)(start + size)};
    return true;
}

/* All of it is in the file once, and what was written meanwhile once more. */
static bool copy_ahead(const struct work *work)
{
    if (pages_find(&work->memory, OWN, copy_run) < 0)
        return false;
    for (int round = 0; work->is_watched && round < ROUNDS; round++) {
        int64_t pages = pages_find(&work->memory, WRITTEN_OWN, copy_run);
        if (pages < 0)
            return false;
        if (pages < FEW_PAGES)
            break;
    }
    return true;
}

static int copy_machine(struct work *work, bool only_own)
{
    struct spent spent = {0};
    work->is_watched = pages_watch(&work->memory, only_own);
    const char *failed = copy_ahead(work) ? pause_and_copy(work, &spent) : strerror(errno);
    /* Told before the rest is done: nobody need wait for that. */
    if (failed != NULL)
        fail("copying the machine", failed);
    else
        dprintf(STDOUT_FILENO,
                "copied %s pause_us %" PRId64 " stop_us %" PRId64 " save_us %" PRId64 " go_on_us %" PRId64
                " pages %" PRId64 "\n",
                work->is_watched ? "watched" : "twice", spent.pause_us, spent.stop_us, spent.save_us, spent.go_on_us,
                spent.pages);
    if (work->is_watched)
        pages_unwatch(&work->memory);
    return failed != NULL;
}

enum { MONITOR, MEMORY, PAGEMAP, FAULTS, TARGET, STATE, DESCRIPTORS };

int main(int argc, char **argv)
{
    int fds[DESCRIPTORS];
    int64_t size;
    if (argc < DESCRIPTORS + 3 || !read_descriptors(argv + 1, fds, DESCRIPTORS) ||
        !read_number(argv[DESCRIPTORS + 1], INT64_MAX / 2, &size) || size <= 0 || size % PAGE != 0) {
        fputs("usage: copier MONITOR MEMORY PAGEMAP FAULTS TARGET STATE SIZE anonymous|all|own [LAYER]...\n", stderr);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    const char *kind = argv[DESCRIPTORS + 2];
    struct work work = {.state = fds[STATE]};
    work.memory = (struct memory){.pagemap = fds[PAGEMAP], .faults = fds[FAULTS]};
    work.memory.is_anonymous = strcmp(kind, "anonymous") == 0;
    if (!monitor_open(fds[MONITOR]))
        return fail("QEMU's monitor", monitor_said());
    if (!find_memory(&work.memory, size))
        return fail("finding the machine's memory", monitor_said());
    for (int index = DESCRIPTORS + 3; index < argc; index++) {
        int layer;
        if (!read_descriptors(argv + index, &layer, 1) || !copy_layer(layer, fds[TARGET]))
            return fail("copying what the machine was made from", strerror(errno));
    }
    copy_between(fds[MEMORY], work.memory.all.start, fds[TARGET]);
    return copy_machine(&work, strcmp(kind, "own") == 0);
}
