/* From a frame to the code that answers it. */
#ifndef VMFORK_REQUEST_H
#define VMFORK_REQUEST_H

#include <stdint.h>

#include "fields.h"
#include "frame.h"

void handle_frame(const struct frame *frame);

/* One for each opcode. Each answers `stream`, or opens it. The number of fields was checked. */
void do_hello(uint32_t stream, struct fields *f);
void do_ping(uint32_t stream, struct fields *f);
void do_exec(uint32_t stream, struct fields *f);
void do_kill(uint32_t stream, struct fields *f);
void do_read(uint32_t stream, struct fields *f);
void do_write(uint32_t stream, struct fields *f);
void do_stat(uint32_t stream, struct fields *f);
void do_list(uint32_t stream, struct fields *f);
void do_remove(uint32_t stream, struct fields *f);
void do_mkdir(uint32_t stream, struct fields *f);
void do_adopt(uint32_t stream, struct fields *f);
void do_clock(uint32_t stream, struct fields *f);
void do_quiesce(uint32_t stream, struct fields *f);
void do_shutdown(uint32_t stream, struct fields *f);
void do_notify(uint32_t stream, struct fields *f);

#endif
