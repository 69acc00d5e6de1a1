/* Control groups of the program: it belongs to them, and they are gone when it has ended. */
#ifndef VMFORK_GROUPS_H
#define VMFORK_GROUPS_H

#include <stdbool.h>
#include <sys/types.h>

/* Memory, CPU and processes are limited by a group each, in version 1, or by one for all. */
enum { GROUP_LIMIT = 3 };

struct groups {
    const char *folders[GROUP_LIMIT];
    int count;
};

/* The process belongs to them, or has ended. False with errno set when one cannot be joined. */
bool groups_join(const struct groups *groups, pid_t process);
/* They are gone, unless another process is in one. */
void groups_remove(const struct groups *groups);

#endif
