#include "command.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "defaults.h"
#include "memory.h"
#include "version.h"

/* By their place below. */
enum {
    OPTION_STDIN,
    OPTION_CLEAN_ENV,
    OPTION_CONTAINED,
    OPTION_ARGUMENTS,
    OPTION_TERMINAL,
    OPTION_ROWS,
    OPTION_COLUMNS,
    OPTION_MEMORY,
    OPTION_PROCESSES,
    OPTION_CPU,
    OPTIONS_KNOWN,
};
/* HOME, USER and LOGNAME, with their values. */
enum { ACCOUNT_VARIABLES = 3, ACCOUNT_TEXT = 2 * sizeof(struct account) };

/* clang-format off */
static const char *const OPTIONS[] = {
    "stdin", "clean-env",
#if PROTOCOL >= 3
    "contained", "arguments",
#endif
#if PROTOCOL >= 4
    "terminal", "rows=", "columns=", "memory=", "processes=", "cpu-ms=",
#endif
    NULL,
};
/* clang-format on */

/* A number that is larger is none of milliseconds, bytes or processes. */
static const uint64_t LARGEST_LIMIT = INT64_MAX / 1000000;

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

bool command_read_window(uint64_t rows, uint64_t columns, struct winsize *out)
{
    if (rows < 1 || rows > USHRT_MAX || columns < 1 || columns > USHRT_MAX)
        return false;
    *out = (struct winsize){.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
    return true;
}

static bool read_settings(struct command *c, const uint64_t *said)
{
    c->wants_stdin = said[OPTION_STDIN];
    c->wants_clean_env = said[OPTION_CLEAN_ENV];
    c->is_contained = said[OPTION_CONTAINED];
    c->lists_follow = said[OPTION_ARGUMENTS];
    c->wants_terminal = said[OPTION_TERMINAL];
    c->limits = (struct limits){
        .memory_bytes = said[OPTION_MEMORY],
        .processes = said[OPTION_PROCESSES],
        .cpu_ms = said[OPTION_CPU],
    };
    for (int i = OPTION_MEMORY; i <= OPTION_CPU; i++)
        if (said[i] > LARGEST_LIMIT)
            return false;
    return !c->wants_terminal || command_read_window(said[OPTION_ROWS], said[OPTION_COLUMNS], &c->window);
}

enum command_read command_read_head(struct command *c, struct fields *f)
{
    memset(c, 0, sizeof *c);
    uint64_t said[OPTIONS_KNOWN] = {0};
    char user[256];
    uint64_t argc;
    if (!field_settings(field_take(f), OPTIONS, said))
        return COMMAND_BAD_OPTION;
    if (!read_settings(c, said) || !field_text(field_take(f), c->cwd, sizeof c->cwd) ||
        !field_text(field_take(f), user, sizeof user) || !field_number(field_take(f), &argc) || argc < 1)
        return COMMAND_BAD_FIELD;
    c->argc = (size_t)argc;
    if (c->cwd[0] == 0)
        snprintf(c->cwd, sizeof c->cwd, "%s", defaults_cwd());
    if (user[0] == 0)
        snprintf(user, sizeof user, "%s", defaults_user());
    c->has_account = user[0] != 0;
    if (c->has_account && !account_find(user, &c->account))
        return COMMAND_NO_USER;
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
