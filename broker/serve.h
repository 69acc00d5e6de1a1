/* Clients are served until the machine ends or is given up. */
#ifndef VMFORK_SERVE_H
#define VMFORK_SERVE_H

#include <stdint.h>

#include "owner.h"

/* How long the machine lives, in ms; 0 is for ever. */
struct lifetime {
    uint64_t ttl_ms;
    /* Without a client. */
    uint64_t idle_ttl_ms;
};

/* The times begin when `starter`, the line to whoever started it, is closed by it. */
_Noreturn void serve(const struct machine *machine, int listener, int starter, struct lifetime lifetime);

#endif
