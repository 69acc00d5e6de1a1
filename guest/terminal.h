/* A program's terminal: a pseudo-terminal in the place of its pipes. */
#ifndef VMFORK_TERMINAL_H
#define VMFORK_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/ioctl.h>

#include "account.h"
#include "pipes.h"

/* More than a terminal holds of what was written to it: 4 KiB to be read and 8 KiB behind them (drivers/tty/pty.c). */
enum { TERMINAL_HOLDS = 65536 };

/* The terminal is the program's three ends; ours are the one to write to and the one for standard output. `owner` is
 * who it belongs to, NULL: the agent's user. False with errno set; `pipes_close` is due for both sides. */
bool terminal_open(struct pipes *p, const struct winsize *window, const struct account *owner);
/* The programs in it are told by SIGWINCH. */
bool terminal_resize(int ours, const struct winsize *window);
/* The key for the end of input was typed, as Ctrl-D is. False with errno set. */
bool terminal_type_end(int ours);

#endif
