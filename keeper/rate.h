#ifndef RATE_H
#define RATE_H

/* The rate of the processor's TSC was printed, in kHz; or what is missing, and the exit status is not 0. */
int print_rate(void);

#endif
