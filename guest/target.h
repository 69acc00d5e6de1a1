/* Where the content of a WRITE goes, and how it gets there. */
#ifndef VMFORK_TARGET_H
#define VMFORK_TARGET_H

#include <limits.h>
#include <stdbool.h>
#include <sys/stat.h>

struct target {
    /* The file itself: links are followed, dangling ones too. */
    char path[PATH_MAX];
    bool exists;
    /* Of what exists. */
    struct stat st;
    /* Written as it is, because nothing that took its place would be the same thing. */
    bool in_place;
};

/* False with errno set: a folder, or a path that leads nowhere. */
bool target_find(struct target *t, const char *path);
/* `fd`, a new file, has the owner and the attributes of what is at the target. False with errno set. */
bool target_copy_traits(const struct target *t, int fd);

#endif
