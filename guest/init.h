/* What the init of a guest does before it serves. */
#ifndef VMFORK_INIT_H
#define VMFORK_INIT_H

/* Kernel file systems, console, environment, modules, loopback and host name are there. Only a failure that leaves
 * nothing to serve with is fatal; others are told on the console. */
void init_machine(void);
/* Disks are written and the machine is off. */
_Noreturn void init_power_off(void);

#endif
