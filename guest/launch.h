/* Starting a program. */
#ifndef VMFORK_LAUNCH_H
#define VMFORK_LAUNCH_H

#include <stdbool.h>
#include <sys/types.h>

enum { MOST_GROUPS = 64 };

struct account {
    uid_t uid;
    gid_t gid;
    gid_t groups[MOST_GROUPS];
    int group_count;
    char name[256];
    char home[4096];
};

/* The account of that name or number, with all its groups. */
bool account_find(const char *user, struct account *out);

struct launch {
    char **argv;
    char **env;
    /* Empty: the account's home if it can be entered, else the root folder. */
    const char *cwd;
    const char *home;
    /* NULL: the process stays what the agent is. */
    const struct account *account;
    int stdio[3];
};

enum launch_step { LAUNCH_FORK, LAUNCH_ACCOUNT, LAUNCH_CWD, LAUNCH_PROGRAM };

struct launch_failure {
    enum launch_step step;
    int error;
};

/* The pid of the program, which runs in its own session; or -1, and why in `failure`. Nothing is left then. */
pid_t launch_start(const struct launch *l, struct launch_failure *failure);

#endif
