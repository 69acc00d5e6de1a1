/* What is written without end, in a file that stays small: the console's text, a program's output. */
#ifndef VMFORK_LOG_H
#define VMFORK_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The file holds the last `size` of `total` bytes, and of all that ever came at least the last 64 KiB. */
struct log {
    int file;
    uint64_t total;
    uint64_t size;
};

/* The file `name` in the present folder, with what it holds. False when it cannot be opened. */
bool log_open(struct log *log, const char *name);
void log_close(struct log *log);
/* The bytes are the log's last. A full file system loses them. */
void log_add(struct log *log, const void *bytes, size_t length);
/* Up to `limit` bytes from number `*from` on, or from the first that is still there, which `*from` says then. */
size_t log_read(const struct log *log, uint64_t *from, void *into, size_t limit);

/* What the guest wrote to its console is in the log, and was looked at. False at the console's end. */
bool log_drain(struct log *log, int console, void (*look)(const char *text, size_t length));

#endif
