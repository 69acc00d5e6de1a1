/* A program that runs: its pipes, and its end. */
#ifndef VMFORK_PROCESS_H
#define VMFORK_PROCESS_H

#include <stdbool.h>
#include <stdint.h>

#include "command.h"
#include "stream.h"

/* The program runs on the stream, or an error was sent there. */
void process_start(uint32_t stream, const struct command *c);
bool process_is(const struct stream *s);
/* To its process group; SIGKILL to all that it started. Nothing is done once it has ended. False with
 * errno set. */
bool process_signal(struct stream *s, int number);
bool process_has_terminal(const struct stream *s);
/* Its terminal has that size, or is gone. False with errno set. */
bool process_resize(struct stream *s, const struct winsize *window);
bool processes_are_open(void);
void processes_each(void (*act)(struct stream *s));
/* Into the answer that is being written: number, process id, what can be done with it, its command line. */
void process_put(const struct stream *s);
/* One that its client has left is the present client's, which is told that it runs. */
void process_take(struct stream *s, uint32_t id);

#endif
