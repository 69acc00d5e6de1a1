/* Programs in the background: they run on when their client leaves, and their output is kept up to a bound.
 *
 *     programs/N.out N.err    what program N wrote, the end of it
 *              N.end          how it ended, as the agent said it; missing while it runs
 *
 * Number 0 is the console. */
#ifndef VMFORK_KEPT_H
#define VMFORK_KEPT_H

#include <stdbool.h>
#include <stdint.h>

#include "client.h"
#include "log.h"
#include "stream.h"

/* The console's log is open. False when it cannot be. */
bool kept_open(void);
struct log *kept_console(void);
int kept_running(void);

/* Program `number` is about to run on the stream; NULL in `*why_not` then, else the code of an error. The client's
 * request `id` is answered when it has started. */
struct stream *kept_start(struct client *client, uint32_t id, uint32_t number, const char **why_not);
/* The stream that the program runs on; NULL when it has ended, or there is none. */
const struct stream *kept_find(uint32_t number);
/* The client is told what program `number` writes from these bytes on, now or when there is something. False when there
 * is no such program. */
bool kept_tell(struct client *client, uint32_t id, uint32_t number, uint64_t from_out, uint64_t from_err);
/* The client's request `id` waits no more, and was answered. False when it did not wait. */
bool kept_cancel(struct client *client, uint32_t id);
/* What the client waited for is not wanted any more. */
void kept_forget(const struct client *client);

/* What came on the stream of a kept program. Gives how the guest broke the protocol, else NULL. */
const char *kept_take(struct stream *s, const struct frame *frame);
/* Whoever waits for what has come is told. */
void kept_notify(void);

#endif
