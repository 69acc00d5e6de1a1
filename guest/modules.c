#include "modules.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fatal.h"

static void load_module(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        complain("cannot open module", path, errno);
        return;
    }
    if (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST)
        complain("cannot load module", path, errno);
    close(fd);
}

/* A line is the path of a module; after a space, the path of a device without which it is not needed. */
static void load_listed(char *line)
{
    const char *module = strsep(&line, " ");
    if (module[0] == '/' && (line == NULL || access(line, F_OK) == 0))
        load_module(module);
}

void modules_load(const char *path)
{
    FILE *list = fopen(path, "re");
    char line[4096];
    if (list == NULL)
        return;
    while (fgets(line, sizeof line, list) != NULL) {
        line[strcspn(line, "\n")] = 0;
        load_listed(line);
    }
    fclose(list);
}
