/* What one program, with all that it starts, may use; and what it used. */
#ifndef VMFORK_LIMIT_H
#define VMFORK_LIMIT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>

#include "cgroup.h"

/* 0 is no limit. */
struct limits {
    uint64_t memory_bytes;
    uint64_t processes;
    uint64_t cpu_ms;
};

struct usage {
    int64_t cpu_ns;
    int64_t peak_bytes;
};

bool limits_are_set(const struct limits *l);
/* The group is held to them, but for that of processor time. False with errno set. */
bool limits_apply(const struct limits *l, const struct cgroup *g);
/* A timer that is due when the group may have used up its processor time, at the earliest; or -1 with errno set. */
int limits_watch_cpu(const struct limits *l);
/* The timer was due. True when the time is used up; else it is set anew. */
bool limits_cpu_is_over(const struct limits *l, const struct cgroup *g, int timer);
/* The kernel ended the group because it wanted more memory. */
bool limits_memory_is_over(const struct cgroup *g);

/* Of the program and of those it waited for: the time of all, the memory of the largest. */
struct usage usage_of_child(const struct rusage *told);
/* Of all that was in the group; where the kernel does not tell, it is as `otherwise` says. */
struct usage usage_of_group(const struct cgroup *g, struct usage otherwise);

#endif
