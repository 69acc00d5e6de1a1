#include "defaults.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "buffer.h"
#include "fatal.h"

/* Fields, each with a zero byte behind it. DEFAULTS: folder, user, then NAME=VALUE. ATTRIBUTES: path, name, value in
 * hex. */
static const char DEFAULTS[] = "/etc/vmfork/defaults";
static const char ATTRIBUTES[] = "/etc/vmfork/attributes";

/* They stay for as long as the agent runs. */
static struct buffer told;
static const char *cwd = "", *user = "";

const char *defaults_cwd(void)
{
    return cwd;
}

const char *defaults_user(void)
{
    return user;
}

/* The content of the file, ended by a zero byte; nothing where there is none. */
static void read_all(const char *path, struct buffer *out)
{
    uint8_t piece[4096];
    ssize_t length = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    while ((length = read(fd, piece, sizeof piece)) > 0)
        buffer_add(out, piece, (size_t)length);
    if (length < 0)
        complain("cannot read", path, errno);
    close(fd);
    buffer_add(out, (const uint8_t *)"", 1);
}

/* The next field, and `*at` behind it; NULL at the end. */
static char *take(char **at, const char *end)
{
    if (*at >= end)
        return NULL;
    char *field = *at;
    *at += strlen(field) + 1;
    return field;
}

static void take_variables(char *at, const char *end)
{
    for (char *variable; (variable = take(&at, end)) != NULL;) {
        char *value = strchr(variable, '=');
        if (value == NULL || value == variable)
            continue;
        *value = 0;
        setenv(variable, value + 1, 1);
    }
}

static int digit_of(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* In its own place; the number of bytes. */
static size_t from_hex(char *text)
{
    size_t length = 0;
    while (digit_of(text[2 * length]) >= 0 && digit_of(text[2 * length + 1]) >= 0) {
        text[length] = (char)(digit_of(text[2 * length]) * 16 + digit_of(text[2 * length + 1]));
        length++;
    }
    return length;
}

static void take_attributes(char *at, const char *end)
{
    for (;;) {
        const char *path = take(&at, end);
        const char *name = take(&at, end);
        char *value = take(&at, end);
        if (value == NULL)
            return;
        if (lsetxattr(path, name, value, from_hex(value), 0) != 0)
            complain("cannot set an attribute of", path, errno);
    }
}

void defaults_take(void)
{
    struct buffer attributes = {0};
    read_all(DEFAULTS, &told);
    char *at = (char *)buffer_head(&told), *end = at + buffer_length(&told);
    if (buffer_length(&told) > 1) {
        char *first = take(&at, end), *second = take(&at, end);
        cwd = first;
        user = second != NULL ? second : "";
        take_variables(at, end);
    }
    read_all(ATTRIBUTES, &attributes);
    if (buffer_length(&attributes) > 1)
        take_attributes((char *)buffer_head(&attributes),
                        (char *)buffer_head(&attributes) + buffer_length(&attributes));
    buffer_free(&attributes);
}
