/* DISK: a disk that the machine was given behind the kernel's back is found and mounted. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "answer.h"
#include "mode.h"
#include "operation.h"
#include "scratch.h"

static void answer(uint32_t stream, const char *name)
{
    char bytes[24];
    snprintf(bytes, sizeof bytes, "%" PRIu64, scratch_bytes(name));
    size_t mark = frame_begin(outbox(), REPLY, stream);
    put_text(outbox(), name);
    put_text(outbox(), bytes);
    end_reply(stream, mark);
}

void do_disk(uint32_t stream, struct fields *f)
{
    (void)f;
    char name[SCRATCH_NAME];
    if (!mode.privileged || *mode.root != 0) {
        send_error(stream, "unsupported", "this agent may not mount a disk", 0);
        return;
    }
    const char *failed = scratch_add(name);
    if (failed != NULL)
        send_errno(stream, failed, errno);
    else
        answer(stream, name);
}
