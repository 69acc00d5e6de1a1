/* What this agent is: how it was started, and whether it ends. */
#ifndef VMFORK_MODE_H
#define VMFORK_MODE_H

#include <stdbool.h>

struct mode {
    /* Init of the guest: PID 1. */
    bool is_init;
    /* The machine is ours to change: its name, its clock, its entropy. Not so for a process in a test on the host. */
    bool privileged;
    /* Stands before /etc and /run/vmfork; empty in a guest. */
    const char *root;
    /* Ends the machine, or the process where the machine is not ours. */
    void (*power_off)(void);
    /* Once everything queued is on its way, `power_off` is called. */
    bool is_ending;
};

extern struct mode mode;

#endif
