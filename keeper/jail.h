/* What a program is put into before it starts: limits, namespaces, a root and a user of its own, no capability. */
#ifndef VMFORK_JAIL_H
#define VMFORK_JAIL_H

#include <stdbool.h>

enum { BOUND_LIMIT = 512 };

struct jail {
    /* A folder over which the program's own root is mounted, where only the program sees it; NULL: it has ours. */
    const char *root;
    /* What of our root is in it, read-only, under the same path. With our root: all that the program can open. */
    const char *bound[BOUND_LIMIT];
    int bound_count;
    /* The namespaces are those of a user namespace, in which we are the same user and nobody else exists. */
    bool mapped;
    /* The namespaces have our network, and the program may connect over IP. */
    bool outward;
    /* So many MiB more than others it may write to one file. */
    long file_mib;
    /* The user and group it becomes; -1: it stays who we are. */
    long user;
};

/* This process is in it. NULL when it is, else what failed, with errno set: the process must end then. */
const char *enter_jail(const struct jail *jail);

#endif
