/* What an EXEC request asks for, as the C strings a program is started with. */
#ifndef VMFORK_COMMAND_H
#define VMFORK_COMMAND_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/ioctl.h>

#include "fields.h"
#include "launch.h"
#include "limit.h"

struct command {
    bool wants_stdin;
    bool wants_clean_env;
    /* A signal of SIGKILL is to end all that the program started. */
    bool is_contained;
    /* argv and env are too long for the request, and come behind it. */
    bool lists_follow;
    /* A terminal of this size in the place of pipes. */
    bool wants_terminal;
    struct winsize window;
    struct limits limits;
    bool has_account;
    struct account account;
    char cwd[PATH_MAX];
    size_t argc;
    char **argv;
    char **env;
    /* argv, env and what they point to that is not the agent's own environment. */
    void *memory;
};

enum command_read { COMMAND_READ, COMMAND_BAD_OPTION, COMMAND_BAD_FIELD, COMMAND_NO_USER };

/* False when no window has so many rows and columns. */
bool command_read_window(uint64_t rows, uint64_t columns, struct winsize *out);

/* The fields up to argc. */
enum command_read command_read_head(struct command *c, struct fields *f);
/* The fields behind it; `command_free` is due whatever is returned. */
enum command_read command_read_lists(struct command *c, struct fields *f);
void command_free(struct command *c);

/* Why Linux finds the command too long, with the numbers. */
void command_explain_length(const struct command *c, char *out, size_t size);

#endif
