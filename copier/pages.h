/* Which pages of another process are its own, and which were written since they were looked at. */
#ifndef VMFORK_PAGES_H
#define VMFORK_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a machine was booted with, and what was added to it: a machine has a few slots for memory. */
enum { PAGE = 4096, PIECES = 64 };

/* Addresses in that process. */
struct run {
    uint64_t start;
    uint64_t end;
};

/* The memory of a machine, as whoever copies it has it. */
struct memory {
    /* /proc/PID/pagemap, and a userfaultfd of the process; -1 where it has none. */
    int pagemap;
    int faults;
    /* Where the process has them, in the order in which they lie in a file of the copy. */
    struct run pieces[PIECES];
    int count;
};

enum question {
    /* Pages that no file has. Those that were only read and hold zeros are none: no file need have them. */
    OWN,
    /* Pages that may have been written since they were last asked for; they are noted anew from now on. */
    WRITTEN,
    /* As WRITTEN, of those that no file has: what was only read is left out, which takes longer. */
    WRITTEN_OWN,
};

/* Told of pages that were found; false ends the search. */
typedef bool (*on_run)(struct run found);

/* From now on the kernel notes which pages are written: of all that is there, or only of what no file has. False, with
 * errno set, when it cannot; nothing has changed then. */
bool pages_watch(const struct memory *m, bool only_own);
/* The kernel notes nothing any more. It is done piece by piece: the process's other threads wait meanwhile. */
void pages_unwatch(const struct memory *m);
/* How many pages were found; -1, with errno set, when the kernel refused or `on_run` did. */
int64_t pages_find(const struct memory *m, enum question question, on_run found);

#endif
