/* What an EXEC request asks for, as the C strings a program is started with. */
#ifndef VMFORK_COMMAND_H
#define VMFORK_COMMAND_H

#include <limits.h>
#include <stdbool.h>

#include "fields.h"
#include "launch.h"

struct command {
    bool wants_stdin;
    bool has_account;
    struct account account;
    char cwd[PATH_MAX];
    char **argv;
    char **env;
    /* argv, env and what they point to that is not the agent's own environment. */
    void *memory;
};

enum command_read { COMMAND_READ, COMMAND_BAD_OPTION, COMMAND_BAD_FIELD, COMMAND_NO_USER };

/* `command_free` is due whatever is returned. */
enum command_read command_read(struct command *c, struct fields *f);
void command_free(struct command *c);

#endif
