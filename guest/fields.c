#include "fields.h"

#include <string.h>

#include "frame.h"
#include "number.h"

bool fields_open(struct fields *f, const uint8_t *bytes, size_t length)
{
    *f = (struct fields){.next = bytes, .end = bytes + length};
    while (length > 0) {
        if (length < 4 || read_u32(bytes) > length - 4)
            return false;
        size_t whole = 4 + (size_t)read_u32(bytes);
        bytes += whole;
        length -= whole;
        f->count++;
    }
    return true;
}

struct field field_take(struct fields *f)
{
    struct field field = {.bytes = f->next + 4, .length = read_u32(f->next)};
    f->next = field.bytes + field.length;
    f->count--;
    return field;
}

bool field_is(struct field f, const char *text)
{
    return f.length == strlen(text) && memcmp(f.bytes, text, f.length) == 0;
}

bool field_text(struct field f, char *out, size_t size)
{
    if (f.length >= size || memchr(f.bytes, 0, f.length) != NULL)
        return false;
    memcpy(out, f.bytes, f.length);
    out[f.length] = 0;
    return true;
}

bool field_path(struct field f, char *out, size_t size)
{
    return f.length > 0 && f.bytes[0] == '/' && field_text(f, out, size);
}

static bool number_in_base(struct field f, unsigned base, uint64_t most, uint64_t *out)
{
    return number_read((const char *)f.bytes, f.length, base, most, out);
}

bool field_number(struct field f, uint64_t *out)
{
    return number_in_base(f, 10, UINT64_MAX, out);
}

bool field_mode(struct field f, unsigned *out)
{
    uint64_t mode;
    if (!number_in_base(f, 8, 07777, &mode))
        return false;
    *out = (unsigned)mode;
    return true;
}

bool field_is_hex(struct field f, size_t length)
{
    if (f.length != length)
        return false;
    for (size_t i = 0; i < length; i++)
        if (f.bytes[i] == 0 || strchr("0123456789abcdef", f.bytes[i]) == NULL)
            return false;
    return true;
}

/* Where the option stands among `names`, and what it says; -1 for an unknown one. */
static int find_option(struct field option, const char *const *names, uint64_t *value)
{
    for (int i = 0; names[i] != NULL; i++) {
        size_t length = strlen(names[i]);
        *value = 1;
        if (names[i][length - 1] != '=') {
            if (field_is(option, names[i]))
                return i;
        } else if (option.length > length && memcmp(option.bytes, names[i], length) == 0) {
            struct field number = {option.bytes + length, option.length - length};
            return field_number(number, value) ? i : -1;
        }
    }
    return -1;
}

struct field field_take_option(struct field *f)
{
    const uint8_t *comma = memchr(f->bytes, ',', f->length);
    struct field option = {f->bytes, comma ? (size_t)(comma - f->bytes) : f->length};
    size_t taken = option.length + (comma != NULL);
    f->bytes += taken;
    f->length -= taken;
    return option;
}

bool field_settings(struct field f, const char *const *names, uint64_t *values)
{
    for (size_t i = 0; names[i] != NULL; i++)
        values[i] = 0;
    while (f.length > 0) {
        uint64_t value;
        int place = find_option(field_take_option(&f), names, &value);
        if (place < 0)
            return false;
        values[place] = value;
    }
    return true;
}

bool field_options(struct field f, const char *const *names, unsigned *out)
{
    *out = 0;
    while (f.length > 0) {
        uint64_t value;
        int place = find_option(field_take_option(&f), names, &value);
        if (place < 0)
            return false;
        *out |= 1u << place;
    }
    return true;
}
