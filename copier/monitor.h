/* The monitor of an emulator (QMP), as far as a copy of its machine needs it. */
#ifndef VMFORK_MONITOR_H
#define VMFORK_MONITOR_H

#include <stdbool.h>
#include <stdint.h>

enum { ANSWER_LIMIT = 64 * 1024 };

/* The greeting was read, and commands are taken. False when that takes too long, or somebody else is greeted. */
bool monitor_open(int socket);
/* The command is on its way: `{"execute": "..."}`. Its answer is what `monitor_wait` gives next. */
bool monitor_send(const char *command);
/* As `monitor_send`, with a descriptor. */
bool monitor_send_with(const char *command, int fd);
/* The answer to the first command that has none yet, without its braces and the key "return"; it lives until the next
 * call. NULL when it was refused, or none came until `deadline_ms` of the clock: `monitor_said` tells which. */
const char *monitor_wait(int64_t deadline_ms);
/* A line with `sign` has come, or none will: the deadline is over, or QEMU is gone. */
void monitor_wait_for(const char *sign, int64_t deadline_ms);
/* The command is sent, and its answer waited for, within the limit. */
const char *monitor_ask(const char *command, int limit_ms);
/* What QEMU said last, for a message. */
const char *monitor_said(void);

#endif
