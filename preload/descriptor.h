/* Descriptors as text. */
#ifndef VMFORK_DESCRIPTOR_H
#define VMFORK_DESCRIPTOR_H

/* -1 for anything but the digits of a descriptor. */
int read_descriptor(const char *text);

#endif
