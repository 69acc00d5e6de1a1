/* Programs of the guest that ask the host something. */
#ifndef VMFORK_ASK_H
#define VMFORK_ASK_H

#include <stdbool.h>

#include "stream.h"

/* It is the stream on which the host is told what programs ask. */
bool ask_is(const struct stream *s);
/* Nobody can ask, before a freeze; the host is told. */
void asks_reset(void);

#endif
