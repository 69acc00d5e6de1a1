#include "command.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "memory.h"
#include "version.h"

enum { OPTION_STDIN = 1, OPTION_CLEAN_ENV = 2, OPTION_CONTAINED = 4, OPTION_ARGUMENTS = 8 };
/* HOME, USER and LOGNAME, with their values. */
enum { ACCOUNT_VARIABLES = 3, ACCOUNT_TEXT = 2 * sizeof(struct account) };

static const char *const OPTIONS[] = {
    "stdin",     "clean-env",
#if PROTOCOL >= 3
    "contained", "arguments",
#endif
    NULL,
};

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

/* `variable` replaces the one of its name among the first `count`, or is added at the end. The first `count` are those
 * from before the request, whose own names all differ: to compare these too would take the agent minutes for a request
 * of 100,000. */
static void env_set(char **env, size_t count, size_t *used, char *variable)
{
    for (size_t i = 0; i < count; i++) {
        if (same_name(env[i], variable)) {
            env[i] = variable;
            return;
        }
    }
    env[(*used)++] = variable;
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

static void env_add_account(struct command *c, size_t *used, char **text)
{
    static const char *const NAMES[ACCOUNT_VARIABLES] = {"HOME", "USER", "LOGNAME"};
    const char *values[ACCOUNT_VARIABLES] = {c->account.home, c->account.name, c->account.name};
    for (size_t i = 0; i < ACCOUNT_VARIABLES; i++) {
        char *variable = *text;
        *text += sprintf(variable, "%s=%s", NAMES[i], values[i]) + 1;
        env_set(c->env, *used, used, variable);
    }
}

static bool read_argv(struct command *c, struct fields *f, char **text)
{
    for (size_t i = 0; i < c->argc; i++)
        if ((c->argv[i] = copy_field(text, field_take(f))) == NULL)
            return false;
    return c->argv[0][0] != 0;
}

static bool read_env(struct command *c, struct fields *f, size_t *used, char **text)
{
    size_t before = *used;
    while (f->count > 0) {
        char *variable = copy_field(text, field_take(f));
        if (variable == NULL || variable[0] == '=' || strchr(variable, '=') == NULL)
            return false;
        env_set(c->env, before, used, variable);
    }
    return true;
}

/* One block: the two lists of pointers, each with its end, then the text. What a field costs on the wire, 4 bytes for
 * its length, is more than the zero at its end here. */
static char *make_memory(struct command *c, const struct fields *f, size_t inherited)
{
    size_t pointers = f->count + inherited + ACCOUNT_VARIABLES + 2;
    size_t text = (size_t)(f->end - f->next) + ACCOUNT_TEXT;
    c->memory = zeroed(pointers * sizeof(char *) + text);
    c->argv = c->memory;
    return (char *)(c->argv + pointers);
}

enum command_read command_read_lists(struct command *c, struct fields *f)
{
    if (c->argc > f->count)
        return COMMAND_BAD_FIELD;
    size_t used = c->wants_clean_env ? 0 : environ_count();
    char *text = make_memory(c, f, used);
    c->env = c->argv + c->argc + 1;
    if (used > 0)
        memcpy(c->env, environ, used * sizeof(char *));
    if (c->has_account)
        env_add_account(c, &used, &text);
    return read_argv(c, f, &text) && read_env(c, f, &used, &text) ? COMMAND_READ : COMMAND_BAD_FIELD;
}

enum command_read command_read_head(struct command *c, struct fields *f)
{
    memset(c, 0, sizeof *c);
    unsigned options;
    char user[256];
    uint64_t argc;
    if (!field_options(field_take(f), OPTIONS, &options))
        return COMMAND_BAD_OPTION;
    if (!field_text(field_take(f), c->cwd, sizeof c->cwd) || !field_text(field_take(f), user, sizeof user) ||
        !field_number(field_take(f), &argc) || argc < 1)
        return COMMAND_BAD_FIELD;
    c->argc = (size_t)argc;
    c->has_account = user[0] != 0;
    if (c->has_account && !account_find(user, &c->account))
        return COMMAND_NO_USER;
    c->wants_stdin = options & OPTION_STDIN;
    c->wants_clean_env = options & OPTION_CLEAN_ENV;
    c->is_contained = options & OPTION_CONTAINED;
    c->lists_follow = options & OPTION_ARGUMENTS;
    return COMMAND_READ;
}

struct length {
    /* As execve(2) counts: each string with its end and its pointer. */
    size_t total;
    size_t longest;
    size_t place;
};

static struct length measure(char *const *list)
{
    struct length found = {0};
    for (size_t i = 0; list[i] != NULL; i++) {
        size_t size = strlen(list[i]) + 1;
        found.total += size + sizeof(char *);
        if (size <= found.longest)
            continue;
        found.longest = size;
        found.place = i;
    }
    return found;
}

/* fs/exec.c: a quarter of the stack's limit, and at most three quarters of the default limit (8 MiB). */
static size_t most_together(void)
{
    enum { MOST = 6 * 1024 * 1024 };
    struct rlimit stack;
    return getrlimit(RLIMIT_STACK, &stack) == 0 && stack.rlim_cur / 4 < MOST ? stack.rlim_cur / 4 : MOST;
}

/* MAX_ARG_STRLEN: 32 pages, with the zero byte that ends each string. The numbers in the text are without it. */
void command_explain_length(const struct command *c, char *out, size_t size)
{
    size_t most = 32 * (size_t)sysconf(_SC_PAGESIZE);
    struct length argv = measure(c->argv), env = measure(c->env);
    const char *variable = c->env[env.place];
    if (argv.longest > most)
        snprintf(out, size, "argument %zu has %zu bytes, Linux takes %zu in one", argv.place, argv.longest - 1,
                 most - 1);
    else if (env.longest > most)
        snprintf(out, size, "the variable %.*s has %zu bytes, Linux takes %zu in one", (int)strcspn(variable, "="),
                 variable, env.longest - 1, most - 1);
    else
        snprintf(out, size, "arguments and environment have %zu bytes, Linux takes %zu together",
                 argv.total + env.total, most_together());
}

void command_free(struct command *c)
{
    free(c->memory);
    c->memory = NULL;
}
