#include "limit.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "number.h"

/* How it works. Memory and processes are the kernel's to count: a control group of the program's own says how much
 * there is (memory.max, pids.max), and when the memory is used up the kernel ends the whole group, not the one process
 * that asked last.
 *
 * The kernel has no limit for the processor time of a group; RLIMIT_CPU counts each process for itself, and a program
 * that starts many has as much again for each. So the agent looks, and seldom: N processors need at least a Nth of what
 * is left to use it up, and that long a timer waits. */

enum { NS_PER_MS = 1000000, NS_PER_US = 1000 };
/* The last looks would else come closer and closer. */
static const uint64_t SHORTEST_WAIT_NS = 10 * NS_PER_MS;

bool limits_are_set(const struct limits *l)
{
    return l->memory_bytes > 0 || l->processes > 0 || l->cpu_ms > 0;
}

static bool set(const struct cgroup *g, const char *file, uint64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, value);
    return cgroup_write(g, file, text);
}

static bool limit_memory(const struct cgroup *g, uint64_t bytes)
{
    if (!set(g, "memory.max", bytes) || !set(g, "memory.oom.group", 1))
        return false;
    /* A kernel without swap has no such file. */
    (void)!set(g, "memory.swap.max", 0);
    return true;
}

bool limits_apply(const struct limits *l, const struct cgroup *g)
{
    if ((l->memory_bytes > 0 || l->processes > 0) && !cgroups_count("+memory +pids"))
        return false;
    return (l->memory_bytes == 0 || limit_memory(g, l->memory_bytes)) &&
           (l->processes == 0 || set(g, "pids.max", l->processes));
}

/* The number behind `key` at the beginning of a line; without a key, the file is the number. */
static bool get(const struct cgroup *g, const char *file, const char *key, uint64_t *out)
{
    char text[1024];
    size_t length = strlen(key);
    cgroup_read(g, file, text, sizeof text);
    for (const char *line = text; *line != 0; line += strspn(line, "\n")) {
        size_t end = strcspn(line, "\n");
        if (end > length && strncmp(line, key, length) == 0)
            return number_read(line + length, end - length, 10, INT64_MAX / NS_PER_US, out);
        line += end;
    }
    return false;
}

static uint64_t cpu_used_ns(const struct cgroup *g)
{
    uint64_t us = 0;
    return get(g, "cpu.stat", "usage_usec ", &us) ? us * NS_PER_US : 0;
}

static bool wait_for(int timer, uint64_t cpu_ns)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t ns = cpu_ns / (uint64_t)(processors > 0 ? processors : 1);
    if (ns < SHORTEST_WAIT_NS)
        ns = SHORTEST_WAIT_NS;
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)}};
    return timerfd_settime(timer, 0, &when, NULL) == 0;
}

int limits_watch_cpu(const struct limits *l)
{
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (timer < 0 || wait_for(timer, l->cpu_ms * NS_PER_MS))
        return timer;
    close(timer);
    return -1;
}

bool limits_cpu_is_over(const struct limits *l, const struct cgroup *g, int timer)
{
    uint64_t due, used = cpu_used_ns(g), most = l->cpu_ms * NS_PER_MS;
    if (read(timer, &due, sizeof due) != sizeof due)
        return false;
    return used >= most || !wait_for(timer, most - used);
}

bool limits_memory_is_over(const struct cgroup *g)
{
    uint64_t killed = 0;
    return get(g, "memory.events", "oom_kill ", &killed) && killed > 0;
}

static int64_t ns_of(struct timeval t)
{
    return (int64_t)t.tv_sec * 1000000000 + (int64_t)t.tv_usec * NS_PER_US;
}

struct usage usage_of_child(const struct rusage *told)
{
    return (struct usage){
        .cpu_ns = ns_of(told->ru_utime) + ns_of(told->ru_stime),
        .peak_bytes = (int64_t)told->ru_maxrss * 1024,
    };
}

struct usage usage_of_group(const struct cgroup *g, struct usage otherwise)
{
    uint64_t ns = cpu_used_ns(g), peak = 0;
    if (ns > 0)
        otherwise.cpu_ns = (int64_t)ns;
    if (get(g, "memory.peak", "", &peak))
        otherwise.peak_bytes = (int64_t)peak;
    return otherwise;
}
