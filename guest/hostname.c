#include "hostname.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "buffer.h"
#include "fatal.h"
#include "path.h"

/* As Debian has it: 127.0.0.1 is localhost alone, and a machine without a network finds itself under the address beside
 * it. A line that carries the name the file /etc/hostname had until now becomes ours; every other line stays. */
static const char OWN_ADDRESS[] = "127.0.1.1";
static const char LOCALHOST[] = "127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\n";

enum { LONGEST_HOSTS = 64 * 1024 };

static bool next_word_is(const char **line, const char *word)
{
    *line += strspn(*line, " \t");
    size_t length = strcspn(*line, " \t\n#");
    bool is = length == strlen(word) && strncmp(*line, word, length) == 0;
    *line += length;
    return is;
}

static bool is_own_line(const char *line, const char *old_name)
{
    return next_word_is(&line, OWN_ADDRESS) && next_word_is(&line, old_name);
}

static void add_own_line(struct buffer *out, const char *name)
{
    char line[sizeof OWN_ADDRESS + 2 + LONGEST_HOSTNAME];
    buffer_add(out, line, (size_t)snprintf(line, sizeof line, "%s\t%s\n", OWN_ADDRESS, name));
}

static void rename_in(struct buffer *out, const char *hosts, const char *old_name, const char *name)
{
    bool found = false;
    for (const char *line = hosts, *next; *line != 0; line = next) {
        size_t length = strcspn(line, "\n");
        next = line + length + (line[length] == '\n');
        if (!is_own_line(line, old_name)) {
            buffer_add(out, line, length);
            buffer_add(out, "\n", 1);
        } else if (!found) {
            add_own_line(out, name);
            found = true;
        }
    }
    if (!found)
        add_own_line(out, name);
}

static void rewrite(const char *path, const void *bytes, size_t length)
{
    char rooted[PATH_MAX];
    if (!path_rooted(path, rooted, sizeof rooted) || !rewrite_file(rooted, bytes, length))
        complain("cannot write", path, errno);
}

static void read_rooted(const char *path, char *out, size_t size)
{
    char rooted[PATH_MAX];
    out[0] = 0;
    if (path_rooted(path, rooted, sizeof rooted))
        read_text(rooted, out, size);
}

static void rename_in_hosts(const char *old_name, const char *name)
{
    static char hosts[LONGEST_HOSTS];
    struct buffer out = {0};
    read_rooted("/etc/hosts", hosts, sizeof hosts);
    rename_in(&out, hosts[0] != 0 ? hosts : LOCALHOST, old_name, name);
    rewrite("/etc/hosts", buffer_head(&out), buffer_length(&out));
    buffer_free(&out);
}

bool hostname_set(const char *name)
{
    char old_name[LONGEST_HOSTNAME + 1], line[LONGEST_HOSTNAME + 2];
    if (sethostname(name, strlen(name)) != 0)
        return false;
    read_rooted("/etc/hostname", old_name, sizeof old_name);
    rename_in_hosts(old_name, name);
    rewrite("/etc/hostname", line, (size_t)snprintf(line, sizeof line, "%s\n", name));
    return true;
}
