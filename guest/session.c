/* HELLO, PING, QUIESCE, GROWN and SHUTDOWN: the requests about the agent and the machine as a whole. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "answer.h"
#include "ask.h"
#include "errors.h"
#include "exec.h"
#include "fatal.h"
#include "mode.h"
#include "mounts.h"
#include "observe.h"
#include "operation.h"
#include "path.h"
#include "ports.h"
#include "process.h"
#include "root.h"
#include "stream.h"
#include "version.h"

/* What HELLO leaves to the client that sends it; without, all ends that the one before had. */
enum { PROGRAMS_STAY = 1, ASKS_STAY = 2 };
static unsigned staying;

static bool stays(const struct stream *s)
{
    return ((staying & PROGRAMS_STAY) != 0 && process_is(s)) || ((staying & ASKS_STAY) != 0 && ask_is(s));
}

static bool take_staying(struct fields *f)
{
    static const char *const NAMES[] = {"programs", "asks", NULL};
    staying = 0;
    return f->count == 0 || field_options(field_take(f), NAMES, &staying);
}

void do_hello(uint32_t stream, struct fields *f)
{
    struct field nonce = field_take(f);
    uint64_t protocol;
    if (nonce.length != NONCE_LENGTH || !field_number(field_take(f), &protocol)) {
        send_invalid(stream, "a nonce of 16 bytes and a protocol number are needed");
        return;
    }
    if (!take_staying(f)) {
        send_error(stream, "unsupported", "an option this agent does not know", 0);
        return;
    }
    char boot_id[64];
    read_text("/proc/sys/kernel/random/boot_id", boot_id, sizeof boot_id);
    forget_client_but(stays);
    buffer_add(outbox(), nonce.bytes, nonce.length);
    size_t mark = frame_begin(outbox(), REPLY, stream);
    put_text(outbox(), TEXT(PROTOCOL));
    put_text(outbox(), AGENT_VERSION);
    put_text(outbox(), boot_id);
    put_text(outbox(), CAPABILITIES);
    end_reply(stream, mark);
}

void do_ping(uint32_t stream, struct fields *f)
{
    (void)f;
    send_done(stream);
}

static void put_item(const char *item, const char *code, const char *evidence)
{
    put_text(outbox(), item);
    put_text(outbox(), code);
    put_text(outbox(), evidence);
}

static const char *sync_all(void)
{
    if (!mode.privileged)
        return "unsupported";
    sync();
    return "ok";
}

static const char *drop_caches(void)
{
    if (!mode.is_init)
        return "unsupported";
    /* What was read of a disk is what each fork would read again, into memory of its own. */
    if (root_upper() >= 0)
        return "kept";
    return append_text("/proc/sys/vm/drop_caches", "3") ? "ok" : error_code(errno);
}

void do_quiesce(uint32_t stream, struct fields *f)
{
    (void)f;
    if (exec_is_open()) {
        send_error(stream, "busy", "a process is running", EBUSY);
        return;
    }
    if (observe_is_open()) {
        send_error(stream, "busy", "files are watched", EBUSY);
        return;
    }
    ports_reset();
    asks_reset();
    size_t mark = frame_begin(outbox(), REPLY, stream);
    put_item("exec", "ok", "");
    put_item("sync", sync_all(), "");
    put_item("caches", drop_caches(), "");
    end_reply(stream, mark);
}

static void put_size(const char *target, int error, uint64_t bytes)
{
    char size[24];
    snprintf(size, sizeof size, "%" PRIu64, bytes);
    put_item(target, error == 0 ? "ok" : error_code(error), size);
}

void do_grown(uint32_t stream, struct fields *f)
{
    (void)f;
    if (!mode.is_init) {
        send_error(stream, "unsupported", "the machine's file systems are not this agent's", 0);
        return;
    }
    size_t mark = frame_begin(outbox(), REPLY, stream);
    mounts_grow(put_size);
    end_reply(stream, mark);
}

void do_shutdown(uint32_t stream, struct fields *f)
{
    (void)f;
    send_done(stream);
    mode.is_ending = true;
}
