/* The entries of a tree on the line: what GET sends, and what PUT takes. */
#ifndef VMFORK_ENTRY_H
#define VMFORK_ENTRY_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "buffer.h"

/* A tree is its root's entry. An entry is its length (u32) and that many bytes of fields:
 *
 *   type, name, mode (octal), mtime ns, uid, gid, size, target
 *
 *   file    pieces follow: offset u64, length u32, bytes; one of length 0 is the last, and its offset is the size;
 *           `target` is `shared` where it has more names
 *   dir     the entries in it follow, then `up`
 *   link    `target` is where it leads
 *   hard    another name of the file at `target`, a path from the root on
 *   other   what cannot be copied: a device, a pipe, a socket, a mount
 *   up      its only field
 *
 * Names are single ones, so no entry can lead out of the folder that it is in. */
enum entry_type { ENTRY_FILE, ENTRY_DIR, ENTRY_LINK, ENTRY_HARD, ENTRY_OTHER, ENTRY_UP };

enum { LARGEST_ENTRY = 8192, PIECE_HEADER = 12, MOST_DEPTH = 256 };

struct entry {
    enum entry_type type;
    char name[NAME_MAX + 1];
    unsigned mode;
    int64_t mtime_ns;
    uid_t uid;
    gid_t gid;
    uint64_t size;
    char target[PATH_MAX];
};

/* Whether it can be the name of a file in a folder. */
bool entry_name_is_sound(const char *name);
/* False when the bytes are no entry. */
bool entry_read(struct entry *e, const uint8_t *bytes, size_t length);
/* With `st` for all numbers. */
void entry_put(struct buffer *out, enum entry_type type, const char *name, const struct stat *st, const char *target);
void entry_put_up(struct buffer *out);
void entry_put_piece(struct buffer *out, uint64_t offset, uint32_t length);

struct timespec entry_time(const struct entry *e);

#endif
