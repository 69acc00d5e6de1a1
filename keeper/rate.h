/* How fast the processor's time stamp counter (TSC) counts. */
#ifndef VMFORK_RATE_H
#define VMFORK_RATE_H

/* The rate was printed, in kHz; or what is missing, and the exit status is not 0. */
int print_rate(void);

#endif
