/* ADOPT: what makes this machine one of its own. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/random.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#include "answer.h"
#include "errors.h"
#include "hostname.h"
#include "mode.h"
#include "operation.h"
#include "path.h"
#include "version.h"

enum { ENTROPY_LENGTH = 64, ID_LENGTH = 32, UUID_LENGTH = 36, NAME_MAX_LENGTH = 255 };

static const char BOOT_ID[] = "/proc/sys/kernel/random/boot_id";
static const char ENTROPY_COUNT[] = "/proc/sys/kernel/random/entropy_avail";

struct outcome {
    const char *code;
    char evidence[NAME_MAX_LENGTH + 1];
};

static void fail_with(struct outcome *o, const char *code)
{
    o->code = code;
    o->evidence[0] = 0;
}

static void fail_errno(struct outcome *o)
{
    fail_with(o, error_code(errno));
}

/* One line of printable text: it becomes a line of a file that programs read. */
static bool is_line(struct field f)
{
    if (f.length == 0 || f.length > NAME_MAX_LENGTH)
        return false;
    for (size_t i = 0; i < f.length; i++)
        if (f.bytes[i] < ' ' || f.bytes[i] == 0x7F)
            return false;
    return true;
}

typedef bool writer(const char *path, const void *bytes, size_t length, unsigned mode);

static void store_line(const char *file, struct field value, unsigned file_mode, writer *store, struct outcome *o)
{
    char path[PATH_MAX], line[NAME_MAX_LENGTH + 2];
    int length = snprintf(line, sizeof line, "%.*s\n", (int)value.length, (const char *)value.bytes);
    /* The folders are there but the first time: looking for them at every fork costs a third of storing the line. */
    bool done = path_rooted(file, path, sizeof path) && store(path, line, (size_t)length, file_mode);
    if (!done && errno == ENOENT)
        done = make_parents(path) && store(path, line, (size_t)length, file_mode);
    if (!done)
        fail_errno(o);
    else
        read_text(path, o->evidence, sizeof o->evidence);
}

/* These are replaced by rename: programs watch the folder, and learn by one event that they were forked. */
static void adopt_generation(struct field value, struct outcome *o)
{
    if (field_is_hex(value, ID_LENGTH))
        store_line("/run/vmfork/generation", value, 0644, replace_file, o);
    else
        fail_with(o, "invalid");
}

static void adopt_fork_id(struct field value, struct outcome *o)
{
    if (is_line(value))
        store_line("/run/vmfork/fork-id", value, 0644, replace_file, o);
    else
        fail_with(o, "invalid");
}

static void adopt_template(struct field value, struct outcome *o)
{
    if (is_line(value))
        store_line("/run/vmfork/template", value, 0644, replace_file, o);
    else
        fail_with(o, "invalid");
}

static void adopt_machine_id(struct field value, struct outcome *o)
{
    if (field_is_hex(value, ID_LENGTH))
        store_line("/etc/machine-id", value, 0444, renew_file, o);
    else
        fail_with(o, "invalid");
}

static bool mix_in(const uint8_t *seed)
{
    struct {
        int bits;
        int bytes;
        uint8_t seed[ENTROPY_LENGTH];
    } pool = {.bits = ENTROPY_LENGTH * 8, .bytes = ENTROPY_LENGTH};
    memcpy(pool.seed, seed, ENTROPY_LENGTH);
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool done = ioctl(fd, RNDADDENTROPY, &pool) == 0 && ioctl(fd, RNDRESEEDCRNG, 0) == 0;
    int error = errno;
    close(fd);
    explicit_bzero(&pool, sizeof pool);
    errno = error;
    return done;
}

static void adopt_entropy(struct field value, struct outcome *o)
{
    if (value.length != ENTROPY_LENGTH)
        fail_with(o, "invalid");
    else if (!mix_in(value.bytes))
        fail_errno(o);
    else
        read_text(ENTROPY_COUNT, o->evidence, sizeof o->evidence);
}

static void adopt_hostname(struct field value, struct outcome *o)
{
    char name[LONGEST_HOSTNAME + 1];
    if (!is_line(value) || !field_text(value, name, sizeof name))
        fail_with(o, "invalid");
    else if (!hostname_set(name))
        fail_errno(o);
    else
        gethostname(o->evidence, sizeof o->evidence);
}

static bool is_uuid(struct field f)
{
    if (f.length != UUID_LENGTH)
        return false;
    for (size_t i = 0; i < UUID_LENGTH; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        bool hex = f.bytes[i] != 0 && strchr("0123456789abcdef", f.bytes[i]) != NULL;
        if (dash ? f.bytes[i] != '-' : !hex)
            return false;
    }
    return true;
}

/* The kernel keeps its boot id for ever; a file laid over it is what every reader sees. */
static bool cover_boot_id(void)
{
    char source[PATH_MAX];
    umount2(BOOT_ID, MNT_DETACH);
    return path_rooted("/run/vmfork/boot-id", source, sizeof source) &&
           mount(source, BOOT_ID, NULL, MS_BIND, NULL) == 0;
}

/* In a fork the file of its template lies over the kernel's already, and what is written into it is what readers see.
 * Mounting anew costs a fork 7 ms, because none of that code has been emulated in it before. */
static bool rewrite_boot_id(struct field value, struct outcome *o)
{
    char path[PATH_MAX], line[UUID_LENGTH + 2];
    int length = snprintf(line, sizeof line, "%.*s\n", (int)value.length, (const char *)value.bytes);
    if (!path_rooted("/run/vmfork/boot-id", path, sizeof path) || !overwrite_file(path, line, (size_t)length))
        return false;
    read_text(BOOT_ID, o->evidence, sizeof o->evidence);
    return field_is(value, o->evidence);
}

static void adopt_boot_id(struct field value, struct outcome *o)
{
    if (!is_uuid(value)) {
        fail_with(o, "invalid");
        return;
    }
    if (rewrite_boot_id(value, o))
        return;
    store_line("/run/vmfork/boot-id", value, 0444, replace_file, o);
    if (strcmp(o->code, "ok") != 0)
        return;
    if (!cover_boot_id())
        fail_errno(o);
    else
        read_text(BOOT_ID, o->evidence, sizeof o->evidence);
}

static void adopt_env(struct field value, struct outcome *o)
{
    const char *equals = memchr(value.bytes, '=', value.length);
    size_t name = equals ? (size_t)(equals - (const char *)value.bytes) : 0;
    if (name == 0 || name > NAME_MAX_LENGTH || memchr(value.bytes, 0, value.length) != NULL) {
        fail_with(o, "invalid");
        return;
    }
    memcpy(o->evidence, value.bytes, name);
    o->evidence[name] = 0;
    char *content = strndup(equals + 1, value.length - name - 1);
    if (content == NULL || setenv(o->evidence, content, 1) != 0)
        fail_errno(o);
    free(content);
}

#if PROTOCOL >= 4
/* Only where it has that value still: it may be the user's own. */
static void adopt_unset_env(struct field value, struct outcome *o)
{
    const uint8_t *equals = memchr(value.bytes, '=', value.length);
    size_t name = equals ? (size_t)(equals - value.bytes) : 0;
    if (name == 0 || name > NAME_MAX_LENGTH) {
        fail_with(o, "invalid");
        return;
    }
    memcpy(o->evidence, value.bytes, name);
    o->evidence[name] = 0;
    const char *held = getenv(o->evidence);
    struct field content = {equals + 1, value.length - name - 1};
    if (held != NULL && field_is(content, held))
        unsetenv(o->evidence);
}
#endif

/* clang-format off */
#if PROTOCOL >= 3
/* A fork's first client does not greet, and learns here what the agent it speaks to can do. */
static void adopt_protocol(struct field value, struct outcome *o)
{
    uint64_t number;
    if (field_number(value, &number))
        strcpy(o->evidence, TEXT(PROTOCOL));
    else
        fail_with(o, "invalid");
}
#endif

static const struct item {
    const char *key;
    void (*adopt)(struct field value, struct outcome *o);
    bool privileged;
    bool repeatable;
} ITEMS[] = {
    {"entropy", adopt_entropy, true, false},
    {"generation", adopt_generation, false, false},
    {"fork-id", adopt_fork_id, false, false},
    {"template", adopt_template, false, false},
    {"hostname", adopt_hostname, true, false},
    {"machine-id", adopt_machine_id, false, false},
    {"boot-id", adopt_boot_id, true, false},
    {"env", adopt_env, false, true},
#if PROTOCOL >= 3
    {"protocol", adopt_protocol, false, false},
#endif
#if PROTOCOL >= 4
    {"unset-env", adopt_unset_env, false, true},
#endif
};
/* clang-format on */

enum { ITEM_COUNT = sizeof ITEMS / sizeof *ITEMS, ITEM_ENTROPY = 0 };

static int item_index(struct field key)
{
    for (int i = 0; i < ITEM_COUNT; i++)
        if (field_is(key, ITEMS[i].key))
            return i;
    return -1;
}

static void apply(int item, struct field value, struct outcome *o)
{
    fail_with(o, "ok");
    if (item < 0 || (ITEMS[item].privileged && !mode.privileged))
        fail_with(o, "unsupported");
    else
        ITEMS[item].adopt(value, o);
}

static bool is_well_formed(struct fields f)
{
    unsigned seen = 0;
    if (f.count % 2 != 0)
        return false;
    while (f.count > 0) {
        int item = item_index(field_take(&f));
        field_take(&f);
        if (item < 0 || ITEMS[item].repeatable)
            continue;
        if (seen & 1u << item)
            return false;
        seen |= 1u << item;
    }
    return true;
}

/* Entropy first, wherever it stands: nothing the other items do may draw from a pool that another fork shares. */
static void apply_entropy(struct fields f, struct outcome *o)
{
    while (f.count > 0) {
        int item = item_index(field_take(&f));
        struct field value = field_take(&f);
        if (item == ITEM_ENTROPY)
            apply(item, value, o);
    }
}

static void put_outcome(struct field key, const struct outcome *o)
{
    put_field(outbox(), key.bytes, key.length);
    put_text(outbox(), o->code);
    put_text(outbox(), o->evidence);
}

void do_adopt(uint32_t stream, struct fields *f)
{
    if (!is_well_formed(*f)) {
        send_invalid(stream, "keys and values, each key once, are needed");
        return;
    }
    struct outcome entropy;
    apply_entropy(*f, &entropy);
    size_t mark = frame_begin(outbox(), REPLY, stream);
    while (f->count > 0) {
        struct outcome other;
        struct field key = field_take(f), value = field_take(f);
        int item = item_index(key);
        if (item != ITEM_ENTROPY)
            apply(item, value, &other);
        put_outcome(key, item == ITEM_ENTROPY ? &entropy : &other);
    }
    end_reply(stream, mark);
}
