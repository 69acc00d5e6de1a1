#include "descriptor.h"

int read_descriptor(const char *text)
{
    int value = 0;
    if (*text == 0)
        return -1;
    for (; *text != 0; text++) {
        if (*text < '0' || *text > '9' || value > 1000000)
            return -1;
        value = value * 10 + (*text - '0');
    }
    return value;
}
