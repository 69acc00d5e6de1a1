/* The end of the agent: on the console, never in silence. */
#ifndef VMFORK_FATAL_H
#define VMFORK_FATAL_H

/* Says why on standard error, then powers the machine off when this is its init, else exits with status 1. */
_Noreturn void fatal(const char *what);
/* The same, with the text of errno. */
_Noreturn void fatal_errno(const char *what);
/* A line on standard error; nothing else happens. */
void complain(const char *what, const char *subject, int error);

#endif
