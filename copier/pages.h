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

/* How the kernel notes what is written, best first. */
enum way {
    /* It takes the protection off a page that is written (userfaultfd). */
    WATCHED,
    /* It marks a page that is written (soft-dirty). Marks are taken off all pages at once or off none. */
    MARKED,
    /* Not at all. */
    TWICE,
};

/* The memory of a machine, as whoever copies it has it. */
struct memory {
    /* /proc/PID/pagemap, a userfaultfd of the process, and /proc/PID/clear_refs; -1 where there is none. */
    int pagemap;
    int faults;
    int marks;
    enum way way;
    /* Where the process has them, in the order in which they lie in a file of the copy. */
    struct run pieces[PIECES];
    int count;
};

enum question {
    /* Pages that no file has. Those that were only read and hold zeros are none: no file need have them. */
    OWN,
    /* Pages that may have been written since they were last asked for; they are noted anew from now on. Where they are
     * marked: of those that no file has, and since `pages_watch`. */
    WRITTEN,
    /* As WRITTEN, of those that no file has: what was only read is left out, which takes longer. */
    WRITTEN_OWN,
};

/* Told of pages that were found; false ends the search. */
typedef bool (*on_run)(struct run found);

/* From now on the kernel notes which pages are written, in the best `way` that there is: of all that is there, or only
 * of what no file has. */
void pages_watch(struct memory *m, bool only_own);
/* Where they are marked: no page is, until it is written. False with errno set. */
bool pages_take_marks_off(const struct memory *m);
/* The kernel notes nothing any more. Protection is
 * taken off piece by piece: the process's other threads wait meanwhile. */
void pages_unwatch(const struct memory *m);
/* How many pages were found; -1, with errno set, when the kernel refused or `on_run` did. */
int64_t pages_find(const struct memory *m, enum question question, on_run found);

#endif
