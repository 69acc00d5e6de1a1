/* Who owns the process, and its end when nobody does. */
#ifndef VMFORK_WATCH_H
#define VMFORK_WATCH_H

/* The descriptors a keeper starts with; -1 where there is none. */
struct kept {
    /* A pidfd of what it keeps. */
    int process;
    /* The socket to the owner. */
    int owner;
    /* Where somebody may ask to take over. */
    int listener;
    /* Held until the process is gone. */
    int lock;
    /* So is this: it says that the user whom the process became is taken. */
    int lease;
};

/* Watches until the process has ended, by itself or because nobody owns it any more. */
_Noreturn void watch(struct kept kept);

#endif
