/* The machine is given up, or stopped, because a client asked for it. */
#ifndef VMFORK_RELEASE_H
#define VMFORK_RELEASE_H

#include <stdbool.h>
#include <stdint.h>

#include "client.h"
#include "owner.h"

/* The machine will wait at its keeper under `token` as soon as nothing is under way; the client's request `id` is
 * answered then. */
void release_ask(struct client *client, uint32_t id, const uint8_t *token);
/* While it is asked for, no request is taken. */
bool release_is_asked(void);
/* A client that has gone does not want it any more. */
void release_forget(const struct client *client);
/* Gives the machine up if it is asked for and can be, and ends this process with it. `line` holds what came from the
 * agent and was not looked at. */
void release_work(const struct machine *machine, const struct parser *line);
int64_t release_deadline(void);

/* The guest was told to power off, and has until the deadline. */
void stop_in(uint64_t grace_ms);
/* NEVER where nobody wants it to stop. */
int64_t stop_deadline(void);

#endif
