#include "ending.h"

#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "../guest/fatal.h"

/* The folder is this process's own: its machine's. It appears whole, or not at all. */
static void leave_note(const char *reason)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int note = open(".ended.json", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (note < 0)
        return;
    if (dprintf(note, "{\"reason\": \"%s\", \"at\": %lld.%03ld}\n", reason, (long long)now.tv_sec,
                now.tv_nsec / 1000000) > 0)
        rename(".ended.json", "ended.json");
    close(note);
}

_Noreturn void end_machine(const char *reason)
{
    leave_note(reason);
    fprintf(stderr, "vmfork-broker: %s; the machine is ended\n", reason);
    _exit(0);
}

/* What the guest's queues call when memory is short. */
_Noreturn void fatal(const char *what)
{
    end_machine(what);
}
