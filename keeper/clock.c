#include "clock.h"

#include <time.h>

enum { LONGEST_WAIT_MS = 3600 * 1000 };

int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int64_t deadline_in(uint64_t ms)
{
    return ms > 0 && ms < (uint64_t)INT64_MAX / 2 ? now_ms() + (int64_t)ms : NEVER;
}

int wait_until(int64_t deadline)
{
    if (deadline == NEVER)
        return -1;
    int64_t left = deadline - now_ms();
    return (int)(left < 0 ? 0 : left > LONGEST_WAIT_MS ? LONGEST_WAIT_MS : left);
}
