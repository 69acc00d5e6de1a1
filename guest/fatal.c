#include "fatal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>

void complain(const char *what, const char *subject, int error)
{
    if (error)
        fprintf(stderr, "vmfork-agent: %s %s: %s\n", what, subject, strerror(error));
    else
        fprintf(stderr, "vmfork-agent: %s %s\n", what, subject);
}

_Noreturn void fatal(const char *what)
{
    fprintf(stderr, "vmfork-agent: fatal: %s\n", what);
    /* A kernel whose init exits panics and may sit there; without power the host sees the end at once. */
    if (getpid() == 1)
        reboot(RB_POWER_OFF);
    _exit(1);
}

_Noreturn void fatal_errno(const char *what)
{
    char line[256];
    snprintf(line, sizeof line, "%s: %s", what, strerror(errno));
    fatal(line);
}
