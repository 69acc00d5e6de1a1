/* Who owns the process, and its end when nobody does. */
#ifndef VMFORK_WATCH_H
#define VMFORK_WATCH_H

#include <sys/types.h>

#include "beside.h"
#include "groups.h"
#include "memory.h"

/* What a keeper starts with; -1 for a descriptor that is none. */
struct kept {
    /* What it keeps, and a pidfd of it. */
    pid_t program;
    int process;
    /* The socket to the owner. */
    int owner;
    /* Where somebody may ask to take over. */
    int listener;
    /* Held until the process is gone. */
    int lock;
    /* So is this: it says that the user whom the process became is taken. */
    int lease;
    /* What a copy of its memory is made by, which it opens itself as it starts. */
    struct memory memory;
    /* What serves it, and has no use without it. */
    struct beside beside;
    /* The process is put into these, and they are removed when it is gone. */
    struct groups groups;
};

/* Watches until the process has ended, by itself or because nobody owns it any more. */
_Noreturn void watch(struct kept kept);

#endif
