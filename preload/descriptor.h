/* Descriptors as text. */
#ifndef VMFORK_DESCRIPTOR_H
#define VMFORK_DESCRIPTOR_H

/* The one whose digits `text` begins with, and what comes after them. -1 for anything else. */
int read_leading(const char *text, const char **rest);
/* -1 for anything but the digits of a descriptor. */
int read_descriptor(const char *text);

#endif
