#include "cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"
#include "path.h"

/* A program leaves its process group and its session by two system calls, as `timeout`, `setsid` and every daemon do;
 * it cannot leave its control group. One is made below the agent's own, and only where a time limit asks for it: that
 * costs a program about as much as another fork.
 *
 *   made -----> kill -----> doomed ----> gone         cgroup.kill (Linux 5.14) ends what runs in it and what that
 *     |                       ^   |                   starts meanwhile; the group can be removed when the last one
 *     |                       +---+ the sweep         has been reaped
 *     +-------> leave ------> gone
 *               what is left in it is moved back      a server that a program leaves behind runs on
 */

struct cgroup {
    char path[PATH_MAX];
    int door;
    bool is_killed;
    struct cgroup *next;
};

/* Processes are moved as they are found, and new ones may come meanwhile. A program that starts them faster than they
 * are moved stays in its group. */
enum { MOST_ROUNDS = 16 };

static const char HOME[] = "/sys/fs/cgroup";

/* Killed, and not yet empty. */
static struct cgroup *doomed;

/* The agent's own group, which is the root's where it is init. Empty where there is none. */
static const char *find_home(void)
{
    static char home[PATH_MAX];
    char own[PATH_MAX - sizeof HOME];
    if (home[0] != 0)
        return home;
    read_text("/proc/self/cgroup", own, sizeof own);
    char *path = strstr(own, "0::");
    if (path == NULL)
        return home;
    path += strlen("0::");
    path[strcspn(path, "\n")] = 0;
    snprintf(home, sizeof home, "%s%s", HOME, strcmp(path, "/") == 0 ? "" : path);
    return home;
}

struct file_path {
    char text[PATH_MAX + 32];
};

static struct file_path path_in(const char *group, const char *name)
{
    struct file_path path;
    snprintf(path.text, sizeof path.text, "%s/%s", group, name);
    return path;
}

static int open_file(const struct cgroup *g, const char *name, int flags)
{
    return open(path_in(g->path, name).text, flags | O_CLOEXEC);
}

static bool make_group(struct cgroup *g)
{
    static unsigned count;
    const char *home = find_home();
    int length = snprintf(g->path, sizeof g->path, "%s/vmfork-%d-%u", home, (int)getpid(), count++);
    return home[0] != 0 && (size_t)length < sizeof g->path && mkdir(g->path, 0755) == 0;
}

struct cgroup *cgroup_make(void)
{
    struct cgroup *g = zeroed(sizeof *g);
    if (make_group(g)) {
        g->door = open_file(g, "cgroup.procs", O_WRONLY);
        if (g->door >= 0)
            return g;
        rmdir(g->path);
    }
    free(g);
    return NULL;
}

int cgroup_door(const struct cgroup *g)
{
    return g != NULL ? g->door : -1;
}

bool cgroup_write(const struct cgroup *g, const char *name, const char *text)
{
    return overwrite_file(path_in(g->path, name).text, text, strlen(text));
}

void cgroup_read(const struct cgroup *g, const char *name, char *out, size_t size)
{
    read_text(path_in(g->path, name).text, out, size);
}

/* Only the root's group may hold processes and divide what it counts among the groups below, so an agent that is a
 * service of another init is refused: EBUSY. */
bool cgroups_count(const char *controllers)
{
    const char *home = find_home();
    return home[0] != 0 &&
           overwrite_file(path_in(home, "cgroup.subtree_control").text, controllers, strlen(controllers));
}

void cgroup_kill(struct cgroup *g)
{
    g->is_killed = cgroup_write(g, "cgroup.kill", "1");
}

static bool remove_group(struct cgroup *g)
{
    if (rmdir(g->path) != 0 && errno != ENOENT)
        return false;
    free(g);
    return true;
}

/* True when it held none. */
static bool move_all(int from, int to)
{
    char pids[4096];
    ssize_t length = pread(from, pids, sizeof pids - 1, 0);
    if (length <= 0)
        return true;
    pids[length] = 0;
    for (char *pid = pids, *end; (end = strchr(pid, '\n')) != NULL; pid = end + 1)
        (void)!write(to, pid, (size_t)(end - pid));
    return false;
}

static void move_out(const struct cgroup *g)
{
    int from = open_file(g, "cgroup.procs", O_RDONLY), to = open_file(g, "../cgroup.procs", O_WRONLY);
    for (int i = 0; i < MOST_ROUNDS && from >= 0 && to >= 0 && !move_all(from, to); i++)
        ;
    if (from >= 0)
        close(from);
    if (to >= 0)
        close(to);
}

void cgroup_leave(struct cgroup *g)
{
    if (g == NULL)
        return;
    close(g->door);
    if (remove_group(g))
        return;
    if (!g->is_killed)
        move_out(g);
    g->next = doomed;
    doomed = g;
    cgroups_sweep();
}

void cgroups_sweep(void)
{
    for (struct cgroup **place = &doomed; *place != NULL;) {
        struct cgroup *g = *place, *next = g->next;
        if (remove_group(g))
            *place = next;
        else
            place = &g->next;
    }
}
