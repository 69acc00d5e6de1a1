/* Who a program runs as. */
#ifndef VMFORK_ACCOUNT_H
#define VMFORK_ACCOUNT_H

#include <stdbool.h>
#include <sys/types.h>

enum { MOST_GROUPS = 64 };

struct account {
    uid_t uid;
    gid_t gid;
    gid_t groups[MOST_GROUPS];
    int group_count;
    char name[256];
    char home[4096];
};

/* The account of that name or number, with all its groups. A number, and root, need not be in /etc/passwd. */
bool account_find(const char *user, struct account *out);

#endif
