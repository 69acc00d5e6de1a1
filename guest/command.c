#include "command.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fatal.h"

enum { OPTION_STDIN = 1, OPTION_CLEAN_ENV = 2 };
/* HOME, USER and LOGNAME, with their values. */
enum { ACCOUNT_VARIABLES = 3, ACCOUNT_TEXT = 2 * sizeof(struct account) };

static const char *const OPTIONS[] = {"stdin", "clean-env", NULL};

static size_t environ_count(void)
{
    size_t count = 0;
    while (environ != NULL && environ[count] != NULL)
        count++;
    return count;
}

static bool same_name(const char *a, const char *b)
{
    size_t length = strcspn(a, "=");
    return length == strcspn(b, "=") && memcmp(a, b, length) == 0;
}

/* A later variable takes the place of an earlier one of its name. */
static void env_set(char **env, char *variable)
{
    while (*env != NULL && !same_name(*env, variable))
        env++;
    *env = variable;
}

static char *copy_field(char **text, struct field f)
{
    char *copy = *text;
    if (memchr(f.bytes, 0, f.length) != NULL)
        return NULL;
    memcpy(copy, f.bytes, f.length);
    copy[f.length] = 0;
    *text += f.length + 1;
    return copy;
}

static void env_add_account(struct command *c, char **text)
{
    static const char *const NAMES[ACCOUNT_VARIABLES] = {"HOME", "USER", "LOGNAME"};
    const char *values[ACCOUNT_VARIABLES] = {c->account.home, c->account.name, c->account.name};
    for (size_t i = 0; i < ACCOUNT_VARIABLES; i++) {
        char *variable = *text;
        *text += sprintf(variable, "%s=%s", NAMES[i], values[i]) + 1;
        env_set(c->env, variable);
    }
}

static bool read_argv(struct command *c, struct fields *f, size_t argc, char **text)
{
    for (size_t i = 0; i < argc; i++)
        if ((c->argv[i] = copy_field(text, field_take(f))) == NULL)
            return false;
    return c->argv[0][0] != 0;
}

static bool read_env(struct command *c, struct fields *f, char **text)
{
    while (f->count > 0) {
        char *variable = copy_field(text, field_take(f));
        if (variable == NULL || variable[0] == '=' || strchr(variable, '=') == NULL)
            return false;
        env_set(c->env, variable);
    }
    return true;
}

/* One block: the two lists of pointers, each with its end, then the text. What a field costs on the wire, 4 bytes for
 * its length, is more than the zero at its end here. */
static char *make_memory(struct command *c, const struct fields *f, size_t inherited)
{
    size_t pointers = f->count + inherited + ACCOUNT_VARIABLES + 2;
    size_t text = (size_t)(f->end - f->next) + ACCOUNT_TEXT;
    c->memory = calloc(1, pointers * sizeof(char *) + text);
    if (c->memory == NULL)
        fatal("out of memory");
    c->argv = c->memory;
    return (char *)(c->argv + pointers);
}

static enum command_read read_lists(struct command *c, struct fields *f, size_t argc, bool clean)
{
    size_t inherited = clean ? 0 : environ_count();
    char *text = make_memory(c, f, inherited);
    c->env = c->argv + argc + 1;
    if (inherited > 0)
        memcpy(c->env, environ, inherited * sizeof(char *));
    if (c->has_account)
        env_add_account(c, &text);
    return read_argv(c, f, argc, &text) && read_env(c, f, &text) ? COMMAND_READ : COMMAND_BAD_FIELD;
}

enum command_read command_read(struct command *c, struct fields *f)
{
    memset(c, 0, sizeof *c);
    unsigned options;
    char user[256];
    uint64_t argc;
    if (!field_options(field_take(f), OPTIONS, &options))
        return COMMAND_BAD_OPTION;
    if (!field_text(field_take(f), c->cwd, sizeof c->cwd) || !field_text(field_take(f), user, sizeof user) ||
        !field_number(field_take(f), &argc) || argc < 1 || argc > f->count)
        return COMMAND_BAD_FIELD;
    c->has_account = user[0] != 0;
    if (c->has_account && !account_find(user, &c->account))
        return COMMAND_NO_USER;
    c->wants_stdin = options & OPTION_STDIN;
    return read_lists(c, f, (size_t)argc, options & OPTION_CLEAN_ENV);
}

void command_free(struct command *c)
{
    free(c->memory);
    c->memory = NULL;
}
