/* Which files a program may open at all. */
#ifndef VMFORK_FILES_H
#define VMFORK_FILES_H

#include <stdbool.h>

/* From now on this process and what it becomes can read and run these files, and what is in these folders, and open
 * nothing else by a path (Landlock, Linux 5.13). What is open stays so. It can trace no process from before. It must
 * have given up new privileges. False with errno set when the kernel has not got it or does not want it. */
bool open_only(const char *const *paths, int count);

#endif
