#include "descent.h"

#include <dirent.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "number.h"
#include "path.h"

/* A control group for each program would cost every one of them as much as another fork; this costs only the one that
 * is ended. Who belongs to it is read from /proc: who is of its session, and whom those started, whatever session that
 * one made. Each is stopped when it is found, so that it starts nobody and leaves nobody behind, and /proc is read
 * until nobody new is there. Then all are killed. A daemon whose parent has ended is init's by then, and runs on. */

enum {
    MOST_MEMBERS = 4096,
    /* A program that starts processes faster than they are stopped keeps some. */
    MOST_ROUNDS = 16,
};

struct members {
    size_t count;
    pid_t pids[MOST_MEMBERS];
};

struct origin {
    pid_t parent;
    pid_t session;
};

static bool is_member(const struct members *m, pid_t pid)
{
    for (size_t i = 0; i < m->count; i++)
        if (m->pids[i] == pid)
            return true;
    return false;
}

static bool read_pid(const char *text, size_t length, pid_t *out)
{
    uint64_t number = 0;
    bool is_pid = number_read(text, length, 10, INT_MAX, &number);
    *out = (pid_t)number;
    return is_pid;
}

static const char *next_word(const char *text)
{
    text += strcspn(text, " ");
    return text + strspn(text, " ");
}

/* False when it has ended. proc(5): a name may hold anything, so what follows it is counted from its last ')': state,
 * parent, process group, session. */
static bool read_origin(pid_t pid, struct origin *out)
{
    char path[64], stat[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    read_text(path, stat, sizeof stat);
    const char *end_of_name = strrchr(stat, ')');
    if (end_of_name == NULL)
        return false;
    const char *parent = next_word(next_word(end_of_name));
    const char *session = next_word(next_word(parent));
    return read_pid(parent, strcspn(parent, " "), &out->parent) &&
           read_pid(session, strcspn(session, " "), &out->session);
}

static bool belongs(const struct members *m, pid_t leader, pid_t pid)
{
    struct origin origin;
    return read_origin(pid, &origin) && (origin.session == leader || is_member(m, origin.parent));
}

/* True when somebody new was found. */
static bool stop_new(struct members *m, pid_t leader, DIR *proc)
{
    size_t before = m->count;
    rewinddir(proc);
    for (const struct dirent *entry; (entry = readdir(proc)) != NULL && m->count < MOST_MEMBERS;) {
        pid_t pid;
        if (!read_pid(entry->d_name, strlen(entry->d_name), &pid) || is_member(m, pid))
            continue;
        if (belongs(m, leader, pid) && kill(pid, SIGSTOP) == 0)
            m->pids[m->count++] = pid;
    }
    return m->count > before;
}

void descent_kill(pid_t leader)
{
    DIR *proc = opendir("/proc");
    if (proc == NULL)
        return;
    struct members *m = zeroed(sizeof *m);
    for (int i = 0; i < MOST_ROUNDS && stop_new(m, leader, proc); i++)
        ;
    for (size_t i = 0; i < m->count; i++)
        kill(m->pids[i], SIGKILL);
    closedir(proc);
    free(m);
}
