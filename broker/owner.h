/* The machine's owner, as its keeper knows one: takes the machine over and gives it up again. */
#ifndef VMFORK_OWNER_H
#define VMFORK_OWNER_H

#include <stdbool.h>
#include <stdint.h>

/* What an owner has of its machine. */
struct machine {
    /* The socket to the keeper: closed, the machine ends. */
    int keeper;
    /* The line to the agent. */
    int line;
    int console;
    /* The lock of the machine's folder, or -1. */
    int lock;
};

/* The machine that waits under `token` at keeper.sock in the present folder is ours. False when it cannot be had. */
bool take_machine(const uint8_t *token, struct machine *into);

/* The machine waits at its keeper for whoever knows `token`, for `ttl_ms`. `log` is the file of its console. False when
 * the keeper did not take it: then it is about to end. */
bool give_up_machine(const struct machine *machine, int log, const uint8_t *token, uint64_t ttl_ms);

#endif
