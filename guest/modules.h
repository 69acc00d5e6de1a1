/* Modules of the kernel that the image says to load. */
#ifndef VMFORK_MODULES_H
#define VMFORK_MODULES_H

/* Those that the file lists are loaded, where their devices are there; nothing where there is no such file. What cannot
 * be loaded is told on standard error. */
void modules_load(const char *path);

#endif
