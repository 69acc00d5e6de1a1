#include "descriptor.h"

int read_leading(const char *text, const char **rest)
{
    int value = *text >= '0' && *text <= '9' ? 0 : -1;
    for (; *text >= '0' && *text <= '9'; text++) {
        if (value > 1000000)
            return -1;
        value = value * 10 + (*text - '0');
    }
    *rest = text;
    return value;
}

int read_descriptor(const char *text)
{
    const char *rest;
    int value = read_leading(text, &rest);
    return value < 0 || *rest != 0 ? -1 : value;
}
