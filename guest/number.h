/* Numbers as text: only digits, and never more than is meant. */
#ifndef VMFORK_NUMBER_H
#define VMFORK_NUMBER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* False when the text is empty, holds anything but digits of `base` (at most 10), or says more than `most`. Unlike
 * the C library it takes no blank, no sign and no wrapped number for one. */
bool number_read(const char *text, size_t length, unsigned base, uint64_t most, uint64_t *out);

#endif
