/* MOVE and CHANGE: another name, mode or owner. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "account.h"
#include "answer.h"
#include "number.h"
#include "operation.h"

/* The number that means "leave as it is" to the system calls. */
static const uint32_t AS_IT_IS = UINT32_MAX;

void do_move(uint32_t stream, struct fields *f)
{
    char from[PATH_MAX], to[PATH_MAX];
    if (!field_path(field_take(f), from, sizeof from) || !field_path(field_take(f), to, sizeof to))
        send_invalid(stream, "two absolute paths are needed");
    else if (rename(from, to) != 0)
        send_errno(stream, "the file could not be moved", errno);
    else
        send_done(stream);
}

static bool find_user(struct field name, uint32_t *uid)
{
    char text[256];
    struct account account;
    *uid = AS_IT_IS;
    if (name.length == 0)
        return true;
    if (!field_text(name, text, sizeof text) || !account_find(text, &account))
        return false;
    *uid = account.uid;
    return true;
}

static bool find_group(struct field name, uint32_t *gid)
{
    char text[256];
    uint64_t number;
    *gid = AS_IT_IS;
    if (name.length == 0)
        return true;
    if (!field_text(name, text, sizeof text))
        return false;
    const struct group *entry = getgrnam(text);
    bool is_number = entry == NULL && number_read(text, name.length, 10, AS_IT_IS - 1, &number);
    if (entry != NULL)
        *gid = entry->gr_gid;
    else if (is_number)
        *gid = (uint32_t)number;
    return entry != NULL || is_number;
}

/* The owner first: a change of owner clears set-user-ID and set-group-ID. */
static bool change(const char *path, bool has_mode, unsigned mode, uint32_t uid, uint32_t gid)
{
    bool owned = (uid == AS_IT_IS && gid == AS_IT_IS) || chown(path, uid, gid) == 0;
    return owned && (!has_mode || chmod(path, mode) == 0);
}

void do_change(uint32_t stream, struct fields *f)
{
    char path[PATH_MAX];
    unsigned mode = 0;
    uint32_t uid, gid;
    bool sound = field_path(field_take(f), path, sizeof path);
    struct field given = field_take(f);
    if (!sound || (given.length > 0 && !field_mode(given, &mode)))
        send_invalid(stream, "an absolute path and a mode are needed");
    else if (!find_user(field_take(f), &uid))
        send_error(stream, "no-user", "there is no such user", 0);
    else if (!find_group(field_take(f), &gid))
        send_error(stream, "no-user", "there is no such group", 0);
    else if (!change(path, given.length > 0, mode, uid, gid))
        send_errno(stream, "the file could not be changed", errno);
    else
        send_done(stream);
}
