#include "links.h"

#include <stdlib.h>
#include <string.h>

#include "memory.h"

/* How many files have several names, and how long those are, is the guest's to choose. */
enum { CHAINS = 1024, MOST_BYTES = 4 * 1024 * 1024 };

struct link {
    struct link *next;
    dev_t device;
    ino_t inode;
    char path[];
};

const char *links_meet(struct links *l, dev_t device, ino_t inode, const char *path)
{
    if (l->chains == NULL)
        l->chains = zeroed(CHAINS * sizeof *l->chains);
    struct link **chain = &l->chains[inode % CHAINS];
    for (const struct link *k = *chain; k != NULL; k = k->next)
        if (k->device == device && k->inode == inode)
            return k->path;
    size_t size = sizeof **chain + strlen(path) + 1;
    if (l->bytes + size > MOST_BYTES)
        return NULL;
    struct link *k = zeroed(size);
    *k = (struct link){.next = *chain, .device = device, .inode = inode};
    strcpy(k->path, path);
    *chain = k;
    l->bytes += size;
    return NULL;
}

void links_free(struct links *l)
{
    for (size_t i = 0; l->chains != NULL && i < CHAINS; i++) {
        while (l->chains[i] != NULL) {
            struct link *k = l->chains[i];
            l->chains[i] = k->next;
            free(k);
        }
    }
    free(l->chains);
    *l = (struct links){0};
}
