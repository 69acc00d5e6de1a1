#include "given.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>

static const char PASSED[] = "VMFORK_FENCE_PASSED", TOLD[] = "VMFORK_FENCE_TOLD";
static const char READY[] = "VMFORK_FENCE_READY", RESOLVER[] = "VMFORK_FENCE_RESOLVER";

/* -1 for anything but a descriptor. */
static int read_descriptor(const char *text)
{
    char *end;
    if (text == NULL || !isdigit((unsigned char)*text))
        return -1;
    errno = 0;
    long value = strtol(text, &end, 10);
    return *end == 0 && errno == 0 && value <= INT_MAX ? (int)value : -1;
}

struct given read_given(void)
{
    struct given given = {read_descriptor(getenv(PASSED)), read_descriptor(getenv(TOLD)),
                          read_descriptor(getenv(READY)), 0};
    const char *resolver = getenv(RESOLVER);
    struct in_addr address;
    if (resolver != NULL && inet_pton(AF_INET, resolver, &address) == 1)
        given.resolver = ntohl(address.s_addr);
    if (given.told < 0 || given.ready < 0)
        given.passed = -1;
    return given;
}
