#include "entry.h"

#include <string.h>

#include "fields.h"
#include "frame.h"

enum { ENTRY_FIELDS = 8, NS_PER_S = 1000000000 };

static const char *const TYPES[] = {
    [ENTRY_FILE] = "file", [ENTRY_DIR] = "dir",     [ENTRY_LINK] = "link",
    [ENTRY_HARD] = "hard", [ENTRY_OTHER] = "other", [ENTRY_UP] = "up",
};

bool entry_name_is_sound(const char *name)
{
    return name[0] != 0 && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strchr(name, '/') == NULL;
}

static bool read_type(struct field f, enum entry_type *out)
{
    for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES; i++) {
        if (field_is(f, TYPES[i])) {
            *out = (enum entry_type)i;
            return true;
        }
    }
    return false;
}

static bool read_time(struct field f, int64_t *out)
{
    bool before = f.length > 0 && f.bytes[0] == '-';
    uint64_t number;
    f.bytes += before;
    f.length -= before;
    if (!field_number(f, &number) || number > INT64_MAX)
        return false;
    *out = before ? -(int64_t)number : (int64_t)number;
    return true;
}

static bool read_owner(struct field f, uint32_t *out)
{
    uint64_t number;
    /* The largest means "leave as it is" to the system calls. */
    if (!field_number(f, &number) || number >= UINT32_MAX)
        return false;
    *out = (uint32_t)number;
    return true;
}

bool entry_read(struct entry *e, const uint8_t *bytes, size_t length)
{
    struct fields f;
    if (!fields_open(&f, bytes, length) || f.count == 0 || !read_type(field_take(&f), &e->type))
        return false;
    if (e->type == ENTRY_UP)
        return f.count == 0;
    return f.count == ENTRY_FIELDS - 1 && field_text(field_take(&f), e->name, sizeof e->name) &&
           entry_name_is_sound(e->name) && field_mode(field_take(&f), &e->mode) &&
           read_time(field_take(&f), &e->mtime_ns) && read_owner(field_take(&f), &e->uid) &&
           read_owner(field_take(&f), &e->gid) && field_number(field_take(&f), &e->size) &&
           field_text(field_take(&f), e->target, sizeof e->target);
}

static size_t begin(struct buffer *out)
{
    size_t mark = buffer_length(out);
    put_u32(out, 0);
    return mark;
}

static void end(struct buffer *out, size_t mark)
{
    write_u32(buffer_head(out) + mark, (uint32_t)(buffer_length(out) - mark - 4));
}

void entry_put(struct buffer *out, enum entry_type type, const char *name, const struct stat *st, const char *target)
{
    size_t mark = begin(out);
    put_text(out, TYPES[type]);
    put_text(out, name);
    put_octal(out, st->st_mode & 07777);
    put_number(out, (int64_t)st->st_mtim.tv_sec * NS_PER_S + st->st_mtim.tv_nsec);
    put_number(out, st->st_uid);
    put_number(out, st->st_gid);
    put_number(out, st->st_size);
    put_text(out, target);
    end(out, mark);
}

void entry_put_up(struct buffer *out)
{
    size_t mark = begin(out);
    put_text(out, TYPES[ENTRY_UP]);
    end(out, mark);
}

void entry_put_piece(struct buffer *out, uint64_t offset, uint32_t length)
{
    put_u32(out, (uint32_t)(offset >> 32));
    put_u32(out, (uint32_t)offset);
    put_u32(out, length);
}

struct timespec entry_time(const struct entry *e)
{
    int64_t seconds = e->mtime_ns / NS_PER_S, ns = e->mtime_ns % NS_PER_S;
    if (ns < 0)
        return (struct timespec){.tv_sec = seconds - 1, .tv_nsec = ns + NS_PER_S};
    return (struct timespec){.tv_sec = seconds, .tv_nsec = ns};
}
