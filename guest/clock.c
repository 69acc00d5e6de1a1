#include "clock.h"

#include <errno.h>
#include <stdint.h>
#include <time.h>

#include "answer.h"
#include "mode.h"
#include "operation.h"

enum { NS_PER_S = 1000000000 };

static int64_t now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * NS_PER_S + t.tv_nsec;
}

int64_t monotonic_ns(void)
{
    return now(CLOCK_MONOTONIC);
}

int64_t wall_ns(void)
{
    return now(CLOCK_REALTIME);
}

static bool set_wall(uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
    return clock_settime(CLOCK_REALTIME, &t) == 0;
}

static void answer(uint32_t stream)
{
    size_t mark = frame_begin(outbox(), REPLY, stream);
    put_number(outbox(), wall_ns());
    put_number(outbox(), monotonic_ns());
    end_reply(stream, mark);
}

void do_clock(uint32_t stream, struct fields *f)
{
    struct field wanted = field_take(f);
    uint64_t ns = 0;
    if (wanted.length == 0)
        answer(stream);
    else if (!field_number(wanted, &ns) || ns > INT64_MAX)
        send_invalid(stream, "a time that is no number");
    else if (!mode.privileged)
        send_error(stream, "unsupported", "this agent may not set the clock", 0);
    else if (!set_wall(ns))
        send_errno(stream, "the clock could not be set", errno);
    else
        answer(stream);
}
