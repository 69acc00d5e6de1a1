/* A control group for one program and all that it starts, so that all of it can be ended. */
#ifndef VMFORK_CGROUP_H
#define VMFORK_CGROUP_H

#include <stdbool.h>
#include <stddef.h>

struct cgroup;

/* NULL where the kernel, or the right to make one, is missing. `cgroup_leave` is due. */
struct cgroup *cgroup_make(void);
/* The groups below the agent's count what is named, such as "+memory": from then on they have its files. False with
 * errno set. */
bool cgroups_count(const char *controllers);
/* A file of the group is written; false with errno set. Or read as text, which is empty where it cannot be. */
bool cgroup_write(const struct cgroup *g, const char *name, const char *text);
void cgroup_read(const struct cgroup *g, const char *name, char *out, size_t size);
/* What a process writes "0" to so that it, and what it starts, is in the group. */
int cgroup_door(const struct cgroup *g);
/* SIGKILL to every process in the group, and to those they start meanwhile. */
void cgroup_kill(struct cgroup *g);
/* The group is gone, or goes with the last process that was killed in it. What runs in it runs on outside. */
void cgroup_leave(struct cgroup *g);
/* Groups whose last process has ended are gone. */
void cgroups_sweep(void);

#endif
