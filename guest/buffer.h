/* A queue of bytes: added at the end, taken from the front. */
#ifndef VMFORK_BUFFER_H
#define VMFORK_BUFFER_H

#include <stddef.h>
#include <stdint.h>

struct buffer {
    uint8_t *data;
    size_t start;
    size_t end;
    size_t size;
};

static inline size_t buffer_length(const struct buffer *b)
{
    return b->end - b->start;
}

/* Never NULL: to add to that, be it nothing, is undefined (clang's sanitizer, for a command without a byte). */
static inline uint8_t *buffer_head(const struct buffer *b)
{
    static uint8_t empty;
    return b->data ? b->data + b->start : &empty;
}

/* Room for `length` more bytes, which count only once `buffer_grow` is called. Moves what the buffer holds. */
uint8_t *buffer_room(struct buffer *b, size_t length);
void buffer_grow(struct buffer *b, size_t length);
void buffer_take(struct buffer *b, size_t length);
void buffer_add(struct buffer *b, const void *bytes, size_t length);
/* Cuts what was added after the first `length` bytes. */
void buffer_truncate(struct buffer *b, size_t length);
/* Empties the buffer and gives its memory back. */
void buffer_free(struct buffer *b);

#endif
