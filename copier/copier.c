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
#include <sys/wait.h>
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

/* `START+SIZE`, of whole pages; gives what comes after it, or NULL for anything else. */
static const char *read_span(const char *text, struct run *out)
{
    char *end;
    if (!isdigit((unsigned char)*text))
        return NULL;
    errno = 0;
    long long start = strtoll(text, &end, 10);
    if (*end != '+' || !isdigit((unsigned char)end[1]))
        return NULL;
    long long size = strtoll(end + 1, &end, 10);
    if (errno != 0 || size <= 0 || size > INT64_MAX - start || start % PAGE != 0 || size % PAGE != 0)
        return NULL;
    *out = (struct run){(uint64_t)start, (uint64_t)(start + size)};
    return end;
}

/* The machine's memory, by the addresses that it has in the guest. */
static bool read_pieces(const char *text, struct memory *m)
{
    do {
        if (m->count == PIECES || (text = read_span(text, &m->pieces[m->count])) == NULL)
            return false;
        m->count++;
    } while (*text++ == ',');
    return text[-1] == 0;
}

/* Where the emulator has what the guest has there: a piece is in one place of the emulator's. */
static bool find_piece(struct run *piece)
{
    static const char SIGN[] = " is 0x";
    char command[160];
    snprintf(command, sizeof command,
             "{\"execute\": \"human-monitor-command\", \"arguments\": {\"command-line\": \"gpa2hva 0x%" PRIx64 "\"}}",
             piece->start);
    const char *said = monitor_ask(command, ASK_LIMIT_MS);
    const char *address = said == NULL ? NULL : strstr(said, SIGN);
    if (address == NULL)
        return false;
    char *end;
    errno = 0;
    int64_t start = strtoll(address + sizeof SIGN - 1, &end, 16);
    if (errno != 0 || start <= 0 || start % PAGE != 0)
        return false;
    *piece = (struct run){(uint64_t)start, (uint64_t)start + (piece->end - piece->start)};
    return true;
}

static bool find_memory(struct memory *m)
{
    for (int index = 0; index < m->count; index++)
        if (!find_piece(&m->pieces[index]))
            return false;
    return true;
}

/* `FD:START+SIZE`: what of a file the machine was made from, and at which places. */
static bool read_layer(const char *text, int *layer, struct run *range)
{
    char *end;
    long fd = isdigit((unsigned char)*text) ? strtol(text, &end, 10) : -1;
    if (fd < 0 || fd > INT_MAX || *end != ':')
        return false;
    *layer = (int)fd;
    const char *rest = read_span(end + 1, range);
    return rest != NULL && *rest == 0;
}

static bool copy_layers(char **argv, int target)
{
    for (; *argv != NULL; argv++) {
        int layer;
        struct run range;
        if (!read_layer(*argv, &layer, &range)) {
            errno = EINVAL;
            return false;
        }
        if (!copy_layer(layer, target, range))
            return false;
    }
    return true;
}

/* All of it is in the file once, and what was written meanwhile once more. */
static bool copy_ahead(const struct work *work)
{
    if (pages_find(&work->memory, OWN, copy_run) < 0)
        return false;
    /* Into pages that are there it takes a third as long, so less is written meanwhile. */
    if (work->memory.way == MARKED)
        return pages_take_marks_off(&work->memory) && pages_find(&work->memory, OWN, copy_run) >= 0;
    for (int round = 0; work->memory.way == WATCHED && round < ROUNDS; round++) {
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
    static const char *const WAYS[] = {[WATCHED] = "watched", [MARKED] = "marked", [TWICE] = "twice"};
    struct spent spent = {0};
    pages_watch(&work->memory, only_own);
    const char *failed = copy_ahead(work) ? pause_and_copy(work, &spent) : strerror(errno);
    /* Told before the rest is done: nobody need wait for that. */
    if (failed != NULL)
        fail("copying the machine", failed);
    else
        dprintf(STDOUT_FILENO,
                "copied %s pause_us %" PRId64 " stop_us %" PRId64 " save_us %" PRId64 " go_on_us %" PRId64
                " pages %" PRId64 "\n",
                WAYS[work->memory.way], spent.pause_us, spent.stop_us, spent.save_us, spent.go_on_us, spent.pages);
    if (work->memory.way == WATCHED)
        pages_unwatch(&work->memory);
    wait(NULL); /* Where init does not reap, as in a container without one, nobody else would. */
    return failed != NULL;
}

enum { MONITOR, MEMORY, PAGEMAP, FAULTS, MARKS, TARGET, STATE, DESCRIPTORS };

int main(int argc, char **argv)
{
    int fds[DESCRIPTORS];
    struct work work = {0};
    if (argc < DESCRIPTORS + 4 || !read_descriptors(argv + 1, fds, DESCRIPTORS) ||
        !read_pieces(argv[DESCRIPTORS + 1], &work.memory)) {
        fputs("usage: copier MONITOR MEMORY PAGEMAP FAULTS MARKS TARGET STATE PIECES all|own BESIDE [LAYER]...\n",
              stderr);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    work.state = fds[STATE];
    work.beside = argv[DESCRIPTORS + 3];
    work.memory.pagemap = fds[PAGEMAP];
    work.memory.faults = fds[FAULTS];
    work.memory.marks = fds[MARKS];
    if (!monitor_open(fds[MONITOR]))
        return fail("QEMU's monitor", monitor_said());
    if (!find_memory(&work.memory))
        return fail("finding the machine's memory", monitor_said());
    if (!copy_layers(argv + DESCRIPTORS + 4, fds[TARGET]))
        return fail("copying what the machine was made from", strerror(errno));
    copy_between(&work.memory, fds[MEMORY], fds[TARGET]);
    return copy_machine(&work, strcmp(argv[DESCRIPTORS + 2], "own") == 0);
}
