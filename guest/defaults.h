/* What an image says of the programs in its guest, and the attributes that its initramfs could not hold. */
#ifndef VMFORK_DEFAULTS_H
#define VMFORK_DEFAULTS_H

/* Its variables are in the environment, and its files have their attributes. A failure is told on the console. */
void defaults_take(void);
/* Where programs begin and as whom, where the host does not say; empty: the image does not either. */
const char *defaults_cwd(void);
const char *defaults_user(void);

#endif
