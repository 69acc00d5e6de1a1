#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "number.h"

/* The one above it, (uid_t)-1, means "leave as it is" to the system calls. */
static const uid_t LARGEST_UID = UINT_MAX - 1;

static const char PATH_OTHERWISE[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

static const struct passwd *entry_of(const char *user)
{
    const struct passwd *entry = getpwnam(user);
    if (entry != NULL)
        return entry;
    uint64_t uid;
    return number_read(user, strlen(user), 10, LARGEST_UID, &uid) ? getpwuid((uid_t)uid) : NULL;
}

bool account_find(const char *user, struct account *out)
{
    const struct passwd *entry = entry_of(user);
    if (entry == NULL)
        return false;
    out->uid = entry->pw_uid;
    out->gid = entry->pw_gid;
    snprintf(out->name, sizeof out->name, "%s", entry->pw_name);
    snprintf(out->home, sizeof out->home, "%s", entry->pw_dir);
    out->group_count = MOST_GROUPS;
    if (getgrouplist(out->name, out->gid, out->groups, &out->group_count) < 0)
        out->group_count = MOST_GROUPS;
    return true;
}

static const char *env_value(char *const *env, const char *name)
{
    size_t length = strlen(name);
    for (; *env != NULL; env++)
        if (strncmp(*env, name, length) == 0 && (*env)[length] == '=')
            return *env + length + 1;
    return NULL;
}

/* The functions below run in the child between vfork and exec. The child shares the agent's memory, so they touch
 * nothing but their own stack, the failure, and the kernel; identity changes by plain system calls, because libc's
 * wrappers keep state for threads. */

static bool become(const struct account *a)
{
    return syscall(SYS_setgroups, a->group_count, a->groups) == 0 && syscall(SYS_setgid, a->gid) == 0 &&
           syscall(SYS_setuid, a->uid) == 0;
}

static bool enter(const struct launch *l)
{
    if (l->cwd[0] != 0)
        return chdir(l->cwd) == 0;
    return chdir(l->home) == 0 || chdir("/") == 0;
}

/* Tries each folder of PATH as execvp(3) would; returns the errno that tells most. */
static int run_from_path(const struct launch *l, const char *path)
{
    int told = ENOENT;
    size_t name = strlen(l->argv[0]);
    for (;;) {
        size_t folder = strcspn(path, ":");
        char file[PATH_MAX];
        if (folder + 1 + name < sizeof file) {
            memcpy(file, path, folder);
            file[folder] = '/';
            memcpy(file + folder + (folder > 0), l->argv[0], name + 1);
            execve(file, l->argv, l->env);
            if (errno != ENOENT && errno != ENOTDIR)
                told = errno;
            if (told != ENOENT && told != EACCES)
                return told;
        }
        if (path[folder] == 0)
            return told;
        path += folder + 1;
    }
}

static int run(const struct launch *l)
{
    if (strchr(l->argv[0], '/') != NULL) {
        execve(l->argv[0], l->argv, l->env);
        return errno;
    }
    const char *path = env_value(l->env, "PATH");
    return run_from_path(l, path != NULL ? path : PATH_OTHERWISE);
}

static void reset_signals(void)
{
    struct sigaction normal = {.sa_handler = SIG_DFL};
    sigaction(SIGPIPE, &normal, NULL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static _Noreturn void child(const struct launch *l, volatile struct launch_failure *failure)
{
    setsid();
    reset_signals();
    for (int i = 0; i < 3; i++)
        dup2(l->stdio[i], i);
    failure->step = LAUNCH_ACCOUNT;
    failure->error = 0;
    if (l->account != NULL && !become(l->account)) {
        failure->error = errno;
        _exit(127);
    }
    failure->step = LAUNCH_CWD;
    if (!enter(l)) {
        failure->error = errno;
        _exit(127);
    }
    failure->step = LAUNCH_PROGRAM;
    failure->error = run(l);
    _exit(127);
}

static pid_t spawn(const struct launch *l, volatile struct launch_failure *failure)
{
    pid_t pid = vfork();
    if (pid == 0)
        child(l, failure);
    return pid;
}

/* vfork: the agent sleeps until the program runs, learns from its own memory why it does not, and no page table is
 * copied, which under emulation is the larger part of starting a program. */
pid_t launch_start(const struct launch *l, struct launch_failure *failure)
{
    *failure = (struct launch_failure){.step = LAUNCH_FORK};
    pid_t pid = spawn(l, failure);
    if (pid < 0) {
        failure->error = errno;
        return -1;
    }
    if (failure->error == 0)
        return pid;
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    return -1;
}
