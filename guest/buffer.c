#include "buffer.h"

#include <stdlib.h>
#include <string.h>

#include "fatal.h"

enum { SMALLEST = 4096, KEPT_WHEN_EMPTY = 128 * 1024 };

static void make_space(struct buffer *b, size_t length)
{
    size_t held = buffer_length(b);
    if (b->start > 0) {
        memmove(b->data, buffer_head(b), held);
        b->start = 0;
        b->end = held;
    }
    size_t size = b->size ? b->size : SMALLEST;
    while (size < held + length)
        size *= 2;
    if (size == b->size)
        return;
    uint8_t *data = realloc(b->data, size);
    if (data == NULL)
        fatal("out of memory");
    b->data = data;
    b->size = size;
}

uint8_t *buffer_room(struct buffer *b, size_t length)
{
    if (b->data == NULL || b->size - b->end < length)
        make_space(b, length);
    return b->data + b->end;
}

void buffer_grow(struct buffer *b, size_t length)
{
    b->end += length;
}

void buffer_take(struct buffer *b, size_t length)
{
    b->start += length;
    if (b->start < b->end)
        return;
    b->start = b->end = 0;
    /* Memory kept in a template is memory in every fork of it. */
    if (b->size > KEPT_WHEN_EMPTY)
        buffer_free(b);
}

void buffer_add(struct buffer *b, const void *bytes, size_t length)
{
    if (length == 0)
        return;
    memcpy(buffer_room(b, length), bytes, length);
    buffer_grow(b, length);
}

void buffer_truncate(struct buffer *b, size_t length)
{
    b->end = b->start + length;
}

void buffer_free(struct buffer *b)
{
    free(b->data);
    memset(b, 0, sizeof *b);
}
