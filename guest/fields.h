/* The fields of a payload, and what can be read out of one. */
#ifndef VMFORK_FIELDS_H
#define VMFORK_FIELDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct field {
    const uint8_t *bytes;
    size_t length;
};

struct fields {
    const uint8_t *next;
    const uint8_t *end;
    size_t count;
};

/* False when the bytes are not fields from first to last. */
bool fields_open(struct fields *f, const uint8_t *bytes, size_t length);
/* The next field; the caller knows that one is left. */
struct field field_take(struct fields *f);

bool field_is(struct field f, const char *text);
/* A copy with a terminating zero. False when it does not fit, or holds a zero byte. */
bool field_text(struct field f, char *out, size_t size);
/* An absolute path. */
bool field_path(struct field f, char *out, size_t size);
bool field_number(struct field f, uint64_t *out);
/* An octal file mode, at most 7777. */
bool field_mode(struct field f, unsigned *out);
bool field_is_hex(struct field f, size_t length);

/* The options of a request as bits, in the order of `names`, which ends with NULL. False for an unknown option. */
bool field_options(struct field f, const char *const *names, unsigned *out);
/* As `field_options`. Behind a name that ends with '=' stands a decimal number, which is its value; that of another
 * option is 1, and of one that is missing 0. */
bool field_settings(struct field f, const char *const *names, uint64_t *values);
/* The first of the options, which is taken off. */
struct field field_take_option(struct field *f);

#endif
