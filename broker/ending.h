/* The end of the machine, told in its folder. */
#ifndef VMFORK_ENDING_H
#define VMFORK_ENDING_H

/* `reason` is in the log and in the folder's ended.json. This process ends, and with it the machine. `reason` has no
 * character that JSON would escape. */
_Noreturn void end_machine(const char *reason);

#endif
