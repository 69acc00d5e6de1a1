/* Starting a program. */
#ifndef VMFORK_LAUNCH_H
#define VMFORK_LAUNCH_H

#include <stdbool.h>
#include <sys/types.h>

#include "account.h"

struct launch {
    char **argv;
    char **env;
    /* Empty: the account's home if it can be entered, else the root folder. */
    const char *cwd;
    const char *home;
    /* NULL: the process stays what the agent is. */
    const struct account *account;
    int stdio[3];
    /* They are a terminal, which becomes the one that controls its session. */
    bool has_terminal;
    /* Where it goes through to its control group; -1: it stays in the agent's. */
    int cgroup_door;
};

enum launch_step { LAUNCH_FORK, LAUNCH_ACCOUNT, LAUNCH_CWD, LAUNCH_PROGRAM };

struct launch_failure {
    enum launch_step step;
    int error;
};

/* Programs keep the limit of open files that the agent was started with; itself takes what it can have. */
void launch_raise_limit(void);
/* The pid of the program, which runs in its own session; or -1, and why in `failure`. Nothing is left then. */
pid_t launch_start(const struct launch *l, struct launch_failure *failure);

#endif
