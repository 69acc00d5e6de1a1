#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fatal.h"

static const char PATH_OTHERWISE[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

static struct rlimit files_of_programs;

void launch_raise_limit(void)
{
    if (getrlimit(RLIMIT_NOFILE, &files_of_programs) != 0)
        fatal_errno("cannot read the limit of open files");
    struct rlimit own = {.rlim_cur = files_of_programs.rlim_max, .rlim_max = files_of_programs.rlim_max};
    if (setrlimit(RLIMIT_NOFILE, &own) != 0)
        complain("cannot raise", "the limit of open files", errno);
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
    if (l->cgroup_door >= 0)
        (void)!write(l->cgroup_door, "0", 1);
    setrlimit(RLIMIT_NOFILE, &files_of_programs);
    for (int i = 0; i < 3; i++)
        dup2(l->stdio[i], i);
    if (l->has_terminal)
        ioctl(0, TIOCSCTTY, 0);
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
