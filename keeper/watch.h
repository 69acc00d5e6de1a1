#ifndef WATCH_H
#define WATCH_H

/* The descriptors a keeper starts with; -1 where there is none. */
struct kept {
    int process;  /* pidfd of what it keeps */
    int owner;    /* socket to the owner */
    int listener; /* where somebody may ask to take over */
    int lock;     /* held until the process is gone */
};

/* Watches until the process has ended, by itself or because nobody owns it any more. */
void watch(struct kept kept) __attribute__((noreturn));

#endif
