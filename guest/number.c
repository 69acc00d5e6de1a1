#include "number.h"

bool number_read(const char *text, size_t length, unsigned base, uint64_t most, uint64_t *out)
{
    uint64_t value = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned digit = (unsigned)(unsigned char)text[i] - '0';
        if (digit >= base || digit > most || value > (most - digit) / base)
            return false;
        value = value * base + digit;
    }
    *out = value;
    return length > 0;
}
