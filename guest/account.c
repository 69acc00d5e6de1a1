#include "account.h"

#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "number.h"

/* The one above it, (uid_t)-1, means "leave as it is" to the system calls. */
static const uid_t LARGEST_UID = UINT_MAX - 1;

static void take_entry(const struct passwd *entry, struct account *out)
{
    out->uid = entry->pw_uid;
    out->gid = entry->pw_gid;
    snprintf(out->name, sizeof out->name, "%s", entry->pw_name);
    snprintf(out->home, sizeof out->home, "%s", entry->pw_dir);
    out->group_count = MOST_GROUPS;
    if (getgrouplist(out->name, out->gid, out->groups, &out->group_count) < 0)
        out->group_count = MOST_GROUPS;
}

/* Its group has the same number: root's group would lend the program rights that nobody gave it. */
static void take_number(uid_t uid, struct account *out)
{
    out->uid = uid;
    out->gid = out->groups[0] = uid;
    out->group_count = 1;
    if (uid == 0)
        strcpy(out->name, "root");
    else
        snprintf(out->name, sizeof out->name, "%u", uid);
    strcpy(out->home, uid == 0 ? "/root" : "/");
}

static bool uid_of(const char *user, uid_t *out)
{
    uint64_t uid = 0;
    bool known = strcmp(user, "root") == 0 || number_read(user, strlen(user), 10, LARGEST_UID, &uid);
    *out = (uid_t)uid;
    return known;
}

/* Its only group from now on: a name or a number. */
static bool take_group(const char *group, struct account *out)
{
    uint64_t number;
    const struct group *entry = getgrnam(group);
    if (entry == NULL && !number_read(group, strlen(group), 10, LARGEST_UID, &number))
        return false;
    out->gid = out->groups[0] = entry != NULL ? entry->gr_gid : (gid_t)number;
    out->group_count = 1;
    return true;
}

static bool find_user(const char *user, struct account *out)
{
    uid_t uid;
    const struct passwd *entry = getpwnam(user);
    bool has_number = entry == NULL && uid_of(user, &uid);
    if (has_number)
        entry = getpwuid(uid);
    if (entry != NULL)
        take_entry(entry, out);
    else if (has_number)
        take_number(uid, out);
    return entry != NULL || has_number;
}

/* USER, or USER:GROUP as images have it. */
bool account_find(const char *user, struct account *out)
{
    char name[sizeof out->name];
    size_t length = strcspn(user, ":");
    if (length >= sizeof name)
        return false;
    memcpy(name, user, length);
    name[length] = 0;
    return find_user(name, out) && (user[length] == 0 || take_group(user + length + 1, out));
}
