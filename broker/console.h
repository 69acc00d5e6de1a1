/* The machine's console: what the guest prints, in a file that stays small. */
#ifndef VMFORK_CONSOLE_H
#define VMFORK_CONSOLE_H

#include <stdbool.h>

/* The file of the console, read and appended to. */
extern int console_log;

/* False when it cannot be opened in the present folder. */
bool console_open(void);
/* What came is in the file, and of all that ever came at least the last 64 KiB. False at the console's end. */
bool console_drain(int console);

#endif
