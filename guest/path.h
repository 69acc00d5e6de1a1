/* Paths, and files that appear whole or not at all. */
#ifndef VMFORK_PATH_H
#define VMFORK_PATH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* `path` as it is for this agent: behind `mode.root`. False with errno set when it does not fit. */
bool path_rooted(const char *path, char *out, size_t size);
/* The folder `name` of the folder `at`, no link; -1 with errno set. `resolve` as openat2(2) has it, what may not be
 * crossed on the way: with RESOLVE_NO_XDEV, EXDEV for one that is mounted on. */
int open_folder(int at, const char *name, uint64_t resolve);
/* Makes the folder and those above it that are missing, with mode 0755. False with errno set. */
bool make_folders(const char *path);
/* The same for the folder that holds `path`. */
bool make_parents(const char *path);
/* A name that nothing has, in the folder of `path`: `out` takes at least PATH_MAX bytes. */
bool beside(const char *path, char *out, size_t size);
/* The file's whole content is now these bytes. False with errno set; the old file is untouched then. */
bool replace_file(const char *path, const void *bytes, size_t length, unsigned mode);
/* The same, under the same inode where the file had as many bytes, that mode, and no other name: of a line no reader
 * sees a mixture. A fork, in which no code has been emulated before, is spared making and renaming a file. */
bool renew_file(const char *path, const void *bytes, size_t length, unsigned mode);
/* The bytes are written over the beginning of a file that exists. False with errno set. */
bool overwrite_file(const char *path, const void *bytes, size_t length);
/* The file's whole content is now these bytes, under the same name and inode; what reads it meanwhile may see a
 * mixture. Made with mode 0644 where there was none. False with errno set. */
bool rewrite_file(const char *path, const void *bytes, size_t length);
/* The text is written to a file that exists, such as one of /proc. False with errno set. */
bool append_text(const char *path, const char *text);
/* What the file holds, without one newline at the end, as text; empty where it cannot be read. */
void read_text(const char *path, char *out, size_t size);

#endif
