/* What the emulator finds here in place of its libc's own. */
#ifndef VMFORK_VISIBLE_H
#define VMFORK_VISIBLE_H

/* All else is hidden: a name of ours would stand before one of the emulator's libraries. */
#define VISIBLE __attribute__((visibility("default")))

#endif
