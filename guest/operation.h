/* What the host can ask for: one function for each opcode. */
#ifndef VMFORK_OPERATION_H
#define VMFORK_OPERATION_H

#include <stdint.h>

#include "fields.h"

/* Each answers `stream`, or opens it. The number of fields was checked. */
void do_hello(uint32_t stream, struct fields *f);
void do_ping(uint32_t stream, struct fields *f);
void do_exec(uint32_t stream, struct fields *f);
void do_kill(uint32_t stream, struct fields *f);
void do_resize(uint32_t stream, struct fields *f);
void do_read(uint32_t stream, struct fields *f);
void do_write(uint32_t stream, struct fields *f);
void do_stat(uint32_t stream, struct fields *f);
void do_list(uint32_t stream, struct fields *f);
void do_remove(uint32_t stream, struct fields *f);
void do_mkdir(uint32_t stream, struct fields *f);
void do_adopt(uint32_t stream, struct fields *f);
void do_clock(uint32_t stream, struct fields *f);
void do_quiesce(uint32_t stream, struct fields *f);
void do_grown(uint32_t stream, struct fields *f);
void do_net(uint32_t stream, struct fields *f);
void do_shutdown(uint32_t stream, struct fields *f);
void do_notify(uint32_t stream, struct fields *f);
void do_put(uint32_t stream, struct fields *f);
void do_get(uint32_t stream, struct fields *f);
void do_move(uint32_t stream, struct fields *f);
void do_change(uint32_t stream, struct fields *f);
void do_connect(uint32_t stream, struct fields *f);
void do_listen(uint32_t stream, struct fields *f);
void do_attach(uint32_t stream, struct fields *f);
void do_watch(uint32_t stream, struct fields *f);
void do_left(uint32_t stream, struct fields *f);
void do_take(uint32_t stream, struct fields *f);
void do_serve(uint32_t stream, struct fields *f);
void do_answer(uint32_t stream, struct fields *f);
void do_disk(uint32_t stream, struct fields *f);

#endif
