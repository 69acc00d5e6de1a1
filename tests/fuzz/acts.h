/* What targets share whose input is a list of acts: included by each, with its statics. */
#include <poll.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* The program neither waits here nor ends the process. */
static jmp_buf way_out;

static int poll_now(struct pollfd *polled, nfds_t count, int limit_ms)
{
    (void)limit_ms;
    return poll(polled, count, 0);
}

/* What it says would be said a thousand times a second. */
static void say_nothing(FILE *stream, const char *format, ...)
{
    (void)stream;
    (void)format;
}

static struct {
    const uint8_t *next;
    size_t left;
} input;

static uint8_t take(void)
{
    if (input.left == 0)
        return 0;
    input.left--;
    return *input.next++;
}

static int must(int descriptor)
{
    if (descriptor < 0) {
        perror("a descriptor");
        abort();
    }
    return descriptor;
}
