#include "pages.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

/* How it works. A page is written to: protected pages are let go by the kernel itself, with no fault told to anybody
 * (asynchronous write protection, Linux 6.7), so a page that is not protected any more was written since. PAGEMAP_SCAN
 * finds those, and protects them again in the same step.
 *
 * An older kernel may mark pages that are written (soft-dirty, Linux 3.11, where it was built with it). All marks are
 * taken off at once, and a page that is written between a look at it and that moment would be lost. So they are never
 * taken off what was looked at: first the marks, then a copy of everything.
 *
 * With neither, only what is the process's own can be told, from the page table as /proc shows it. */

/* linux/fs.h, struct pm_scan_arg: of Linux 6.7, and not in every libc. */
struct scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
struct region {
    uint64_t start, end, categories;
};
enum { PROTECT_MATCHING = 1 };
enum { IS_WRITTEN = 1 << 1, IS_FILE = 1 << 2, IS_PRESENT = 1 << 3, IS_SWAPPED = 1 << 4, IS_ZERO = 1 << 5 };
#define SCAN _IOWR('f', 16, struct scan)

enum { REGIONS = 512, ENTRIES = 8192 };
#define STEP (UINT64_C(16) << 20)
/* Documentation/admin-guide/mm/pagemap.rst. */
#define ENTRY_THERE (UINT64_C(3) << 62)
#define ENTRY_FILE (UINT64_C(1) << 61)
#define ENTRY_MARKED (UINT64_C(1) << 55)

static struct scan scan_for(enum question question)
{
    struct scan scan = {.category_anyof_mask = IS_PRESENT | IS_SWAPPED};
    if (question != OWN) {
        scan.flags = PROTECT_MATCHING;
        scan.category_mask = IS_WRITTEN;
    }
    if (question != WRITTEN) {
        scan.category_mask |= IS_FILE;
        scan.category_inverted = IS_FILE;
    }
    if (question == OWN) {
        scan.category_mask |= IS_ZERO;
        scan.category_inverted |= IS_ZERO;
    }
    scan.return_mask = IS_PRESENT;
    return scan;
}

static int64_t scan_piece(int pagemap, struct run piece, struct scan scan, on_run found)
{
    static struct region regions[REGIONS];
    int64_t pages = 0;
    scan.vec = (uint64_t)(uintptr_t)regions;
    scan.vec_len = REGIONS;
    scan.end = piece.end;
    for (scan.start = piece.start; scan.start < scan.end; scan.start = scan.walk_end) {
        scan.size = sizeof scan;
        int count = ioctl(pagemap, SCAN, &scan);
        if (count < 0)
            return -1;
        for (int index = 0; index < count; index++) {
            pages += (int64_t)((regions[index].end - regions[index].start) / PAGE);
            if (!found((struct run){regions[index].start, regions[index].end}))
                return -1;
        }
    }
    return pages;
}

static int64_t scan_all(const struct memory *m, struct scan scan, on_run found)
{
    int64_t pages = 0;
    for (int index = 0; index < m->count; index++) {
        int64_t more = scan_piece(m->pagemap, m->pieces[index], scan, found);
        if (more < 0)
            return -1;
        pages += more;
    }
    return pages;
}

static bool pass_by(struct run found)
{
    (void)found;
    return true;
}

/* The regions are asked for, though nobody looks at them: without, the kernel takes every page for one that matches,
 * and what is not there counts as swapped out from then on (Linux 6.18, fs/proc/task_mmu.c). */
static bool protect(const struct memory *m, bool only_own)
{
    struct scan scan = scan_for(only_own ? OWN : WRITTEN_OWN);
    scan.flags = PROTECT_MATCHING;
    if (!only_own)
        scan.category_mask = scan.category_inverted = 0;
    return scan_all(m, scan, pass_by) >= 0;
}

static bool note_writes(const struct memory *m)
{
    for (int index = 0; index < m->count; index++) {
        struct run piece = m->pieces[index];
        struct uffdio_register range = {.range = {.start = piece.start, .len = piece.end - piece.start}};
        range.mode = UFFDIO_REGISTER_MODE_WP;
        if (ioctl(m->faults, UFFDIO_REGISTER, &range) != 0)
            return false;
    }
    return true;
}

static void forget_writes(int faults, struct run run)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    for (; run.start < run.end; run.start += STEP) {
        uint64_t left = run.end - run.start;
        struct uffdio_range step = {.start = run.start, .len = left < STEP ? left : STEP};
        ioctl(faults, UFFDIO_UNREGISTER, &step);
        nanosleep(&pause, NULL);
    }
}

void pages_unwatch(const struct memory *m)
{
    if (m->faults < 0)
        return;
    for (int index = 0; index < m->count; index++)
        forget_writes(m->faults, m->pieces[index]);
}

/* Whether this kernel marks pages: a process has marks on what it has just begun to use. A kernel without them takes
 * what is written to clear_refs all the same. */
static bool has_marks(void)
{
    static volatile char page[PAGE];
    uint64_t entry = 0;
    page[0] = 1;
    int pagemap = open("/proc/self/pagemap", O_RDONLY);
    if (pagemap < 0)
        return false;
    off_t place = (off_t)((uintptr_t)page / PAGE * sizeof entry);
    bool is_read = pread(pagemap, &entry, sizeof entry, place) == sizeof entry;
    close(pagemap);
    return is_read && (entry & ENTRY_MARKED) != 0;
}

bool pages_take_marks_off(const struct memory *m)
{
    return write(m->marks, "4", 1) == 1;
}

void pages_watch(struct memory *m, bool only_own)
{
    m->way = WATCHED;
    if (m->faults >= 0 && note_writes(m) && protect(m, only_own))
        return;
    pages_unwatch(m);
    m->way = m->marks >= 0 && has_marks() && pages_take_marks_off(m) ? MARKED : TWICE;
}

/* Whether it is the process's own, and has all that is `wanted`. */
static bool is_own(uint64_t entry, uint64_t wanted)
{
    return (entry & ENTRY_THERE) != 0 && (entry & ENTRY_FILE) == 0 && (entry & wanted) == wanted;
}

static int64_t read_piece(int pagemap, struct run piece, uint64_t wanted, on_run found)
{
    static uint64_t entries[ENTRIES];
    int64_t pages = 0;
    struct run run = {0, 0};
    for (uint64_t at = piece.start; at < piece.end;) {
        uint64_t left = (piece.end - at) / PAGE;
        size_t size = (left < ENTRIES ? left : ENTRIES) * sizeof *entries;
        ssize_t got = pread(pagemap, entries, size, (off_t)(at / PAGE * sizeof *entries));
        if (got <= 0 || got % (ssize_t)sizeof *entries != 0)
            return -1;
        for (size_t index = 0; index < (size_t)got / sizeof *entries; index++, at += PAGE) {
            if (!is_own(entries[index], wanted))
                continue;
            pages++;
            if (run.end != at && run.end > run.start && !found(run))
                return -1;
            run = (struct run){run.end == at && run.end > run.start ? run.start : at, at + PAGE};
        }
    }
    return run.end > run.start && !found(run) ? -1 : pages;
}

static int64_t read_all(const struct memory *m, uint64_t wanted, on_run found)
{
    int64_t pages = 0;
    for (int index = 0; index < m->count; index++) {
        int64_t more = read_piece(m->pagemap, m->pieces[index], wanted, found);
        if (more < 0)
            return -1;
        pages += more;
    }
    return pages;
}

int64_t pages_find(const struct memory *m, enum question question, on_run found)
{
    if (m->way == MARKED && question != OWN)
        return read_all(m, ENTRY_MARKED, found);
    int64_t pages = scan_all(m, scan_for(question), found);
    if (pages < 0 && errno == ENOTTY && question == OWN)
        return read_all(m, 0, found);
    return pages;
}
