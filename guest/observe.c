/* WATCH: what happens to files, told as it happens. */
#include "observe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "answer.h"
#include "fields.h"
#include "memory.h"
#include "operation.h"
#include "path.h"
#include "stream.h"

/* How it works. The kernel keeps what happens (inotify(7)) until it is read, which is as long as the host gives credit:
 * so a host that reads nothing costs a queue of the kernel's, at whose end stands `overflow`.
 *
 * With `recursive` each folder below is watched too. The kernel watches one folder at a time, so a new one is read once
 * it is watched, and what is in it by then is told as created: none is missed, and one may be told twice. A folder that
 * moves away takes its watches along; one that comes is read as a new one, without telling. What is mounted below is
 * not watched. */

enum { WATCH_RECURSIVE = 1 };

static const char *const WATCH_OPTIONS[] = {"recursive", NULL};

enum {
    CHANNEL_EVENTS = 0,
    CHAINS = 256,
    MOST_FOLDERS = 8192,
    /* To watch one folder takes about 40 us under emulation. */
    STEPS_A_PUMP = 64,
    READ_SIZE = 4096,
    OF_FOLDER = IN_CREATE | IN_MODIFY | IN_CLOSE_WRITE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_ATTRIB,
    OF_ITSELF = IN_DELETE_SELF | IN_MOVE_SELF,
    /* Which says that the root is not there any more. */
    OF_END = OF_ITSELF | IN_UNMOUNT | IN_IGNORED,
};

/* A folder that is watched; `path` leads to it from the root on, and is empty for that. */
struct node {
    struct node *next;
    int watch;
    char path[];
};

/* A folder to be watched. `tells`: what is in it is told as created. */
struct pending {
    struct pending *next;
    bool tells;
    char path[];
};

struct observed {
    int notify;
    bool recursive;
    bool readable;
    bool is_ready;
    bool ended;
    char root[PATH_MAX];
    struct node *nodes[CHAINS];
    size_t folders;
    struct pending *first;
    struct pending **last;
    /* The folder that is read, and what of it was pending. */
    DIR *reading;
    struct pending *read;
    struct buffer held;
};

static void tell(struct observed *o, const char *kind, const char *path, bool is_folder, uint32_t pair)
{
    put_text(&o->held, kind);
    put_text(&o->held, path);
    put_text(&o->held, is_folder ? "dir" : "");
    put_number(&o->held, pair);
}

static struct node **find_node(struct observed *o, int watch)
{
    struct node **at = &o->nodes[(unsigned)watch % CHAINS];
    while (*at != NULL && (*at)->watch != watch)
        at = &(*at)->next;
    return at;
}

static void drop_node(struct observed *o, struct node **at)
{
    struct node *gone = *at;
    *at = gone->next;
    free(gone);
    o->folders--;
}

static void keep_node(struct observed *o, int watch, const char *path)
{
    struct node **at = find_node(o, watch);
    if (*at != NULL)
        drop_node(o, at);
    struct node *n = zeroed(sizeof *n + strlen(path) + 1);
    n->watch = watch;
    strcpy(n->path, path);
    n->next = o->nodes[(unsigned)watch % CHAINS];
    o->nodes[(unsigned)watch % CHAINS] = n;
    o->folders++;
}

static bool lies_in(const char *path, const char *folder)
{
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == 0 || path[length] == '/');
}

/* A folder that moved away is at another path by now, or out of the tree. */
static void forget_below(struct observed *o, const char *folder)
{
    for (size_t chain = 0; chain < CHAINS; chain++) {
        struct node **at = &o->nodes[chain];
        while (*at != NULL) {
            if (!lies_in((*at)->path, folder)) {
                at = &(*at)->next;
                continue;
            }
            inotify_rm_watch(o->notify, (*at)->watch);
            drop_node(o, at);
        }
    }
}

static bool join(char out[PATH_MAX], const char *folder, const char *name)
{
    int length = snprintf(out, PATH_MAX, "%s%s%s", folder, folder[0] != 0 && name[0] != 0 ? "/" : "", name);
    return length >= 0 && length < PATH_MAX;
}

static void add_pending(struct observed *o, const char *path, bool tells)
{
    struct pending *p = zeroed(sizeof *p + strlen(path) + 1);
    p->tells = tells;
    strcpy(p->path, path);
    *o->last = p;
    o->last = &p->next;
}

static struct pending *take_pending(struct observed *o)
{
    struct pending *p = o->first;
    o->first = p->next;
    if (o->first == NULL)
        o->last = &o->first;
    return p;
}

/* Names that are gone are nobody's error. False, with errno, when it cannot be watched. */
static bool watch_folder(struct observed *o, const char *path)
{
    char whole[PATH_MAX];
    if (!join(whole, o->root, path))
        return true;
    if (o->folders >= MOST_FOLDERS) {
        errno = ENOSPC;
        return false;
    }
    int watch = inotify_add_watch(o->notify, whole, OF_FOLDER | OF_ITSELF | IN_ONLYDIR | IN_DONT_FOLLOW);
    if (watch < 0)
        return errno == ENOENT || errno == ENOTDIR || errno == ELOOP || errno == EACCES;
    keep_node(o, watch, path);
    int fd = open(whole, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    o->reading = fd < 0 ? NULL : fdopendir(fd);
    if (o->reading == NULL && fd >= 0)
        close(fd);
    return true;
}

/* A folder that is mounted below itself would take its own watch away: the kernel has one for each inode. */
static bool is_mounted_on(int at, const char *name)
{
    int fd = open_folder(at, name, RESOLVE_NO_XDEV);
    if (fd < 0)
        return errno == EXDEV;
    close(fd);
    return false;
}

static void meet(struct observed *o, const struct dirent *entry)
{
    char path[PATH_MAX];
    struct stat st;
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
        fstatat(dirfd(o->reading), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
        !join(path, o->read->path, entry->d_name))
        return;
    if (o->read->tells)
        tell(o, "created", path, S_ISDIR(st.st_mode), 0);
    if (S_ISDIR(st.st_mode) && !is_mounted_on(dirfd(o->reading), entry->d_name))
        add_pending(o, path, o->read->tells);
}

static void end_reading(struct observed *o)
{
    if (o->reading != NULL)
        closedir(o->reading);
    free(o->read);
    o->reading = NULL;
    o->read = NULL;
}

/* One step of what is to be watched still. */
static bool read_pending(struct observed *o)
{
    const struct dirent *entry = o->reading == NULL ? NULL : readdir(o->reading);
    if (entry != NULL) {
        meet(o, entry);
        return true;
    }
    end_reading(o);
    if (o->first == NULL)
        return true;
    o->read = take_pending(o);
    return watch_folder(o, o->read->path);
}

static bool has_pending(const struct observed *o)
{
    return o->first != NULL || o->read != NULL;
}

static const char *kind_of(uint32_t mask)
{
    if (mask & IN_CREATE)
        return "created";
    if (mask & IN_MODIFY)
        return "changed";
    if (mask & IN_CLOSE_WRITE)
        return "closed";
    if (mask & IN_DELETE)
        return "removed";
    if (mask & IN_MOVED_FROM)
        return "moved-away";
    if (mask & IN_MOVED_TO)
        return "moved-here";
    return "attributes";
}

static void end_with(struct observed *o, const char *kind)
{
    tell(o, kind, "", false, 0);
    o->ended = true;
}

/* Some are lost: folders among them are found again. */
static void overflow(struct observed *o)
{
    tell(o, "overflow", "", false, 0);
    if (o->recursive)
        add_pending(o, "", false);
}

static void follow_folder(struct observed *o, uint32_t mask, const char *path)
{
    if (mask & (IN_DELETE | IN_MOVED_FROM))
        forget_below(o, path);
    else if (mask & (IN_CREATE | IN_MOVED_TO))
        add_pending(o, path, (mask & IN_CREATE) != 0);
}

static void take_event(struct observed *o, const struct inotify_event *event)
{
    const char *name = event->len > 0 ? event->name : "";
    char path[PATH_MAX];
    if (event->mask & IN_Q_OVERFLOW) {
        overflow(o);
        return;
    }
    struct node **at = find_node(o, event->wd);
    if (*at == NULL)
        return;
    bool is_root = (*at)->path[0] == 0;
    if (event->mask & OF_END) {
        if (is_root)
            end_with(o, "gone");
        else if (event->mask & IN_IGNORED)
            drop_node(o, at);
        return;
    }
    /* The folder above tells the same of one below. */
    if ((!is_root && name[0] == 0) || !join(path, (*at)->path, name))
        return;
    bool is_folder = (event->mask & IN_ISDIR) != 0;
    tell(o, kind_of(event->mask), path, is_folder, event->cookie);
    if (is_folder && o->recursive && name[0] != 0)
        follow_folder(o, event->mask, path);
}

static void read_events(struct observed *o)
{
    char bytes[READ_SIZE] __attribute__((aligned(__alignof__(struct inotify_event))));
    ssize_t got = read(o->notify, bytes, sizeof bytes);
    if (got <= 0) {
        o->readable = false;
        return;
    }
    for (char *at = bytes; at < bytes + got && !o->ended;) {
        const struct inotify_event *event = (const struct inotify_event *)at;
        take_event(o, event);
        at += sizeof *event + event->len;
    }
}

static bool observe_pump(struct stream *s)
{
    struct observed *o = s->state;
    size_t limit = stream_allowance(s, CHANNEL_CONTENT);
    if (limit == 0)
        return false;
    for (int i = 0; i < STEPS_A_PUMP && has_pending(o) && buffer_length(&o->held) < limit; i++) {
        if (!read_pending(o)) {
            send_error(s->id, "busy", "there are more folders than can be watched", 0);
            stream_close(s);
            return true;
        }
    }
    if (!has_pending(o) && !o->is_ready) {
        o->is_ready = true;
        tell(o, "ready", "", false, 0);
    }
    if (o->is_ready && o->readable && !o->ended && buffer_length(&o->held) < limit)
        read_events(o);
    size_t length = buffer_length(&o->held) < limit ? buffer_length(&o->held) : limit;
    if (length > 0)
        stream_send(s, CHANNEL_CONTENT, buffer_head(&o->held), length);
    buffer_take(&o->held, length);
    if (o->ended && buffer_length(&o->held) == 0) {
        send_done(s->id);
        stream_close(s);
        return true;
    }
    return length > 0 || has_pending(o) || o->readable;
}

static void observe_ready(struct stream *s, uint8_t channel)
{
    (void)channel;
    ((struct observed *)s->state)->readable = true;
}

static void observe_close(struct stream *s)
{
    struct observed *o = s->state;
    end_reading(o);
    while (o->first != NULL)
        free(take_pending(o));
    for (size_t chain = 0; chain < CHAINS; chain++)
        while (o->nodes[chain] != NULL)
            drop_node(o, &o->nodes[chain]);
    if (o->notify >= 0)
        close(o->notify);
    buffer_free(&o->held);
    free(o);
}

static const struct stream_kind OBSERVED = {.pump = observe_pump, .ready = observe_ready, .close = observe_close};

bool observe_is_open(void)
{
    return stream_of_kind(&OBSERVED) != NULL;
}

/* What the caller names is its to choose, so a link is followed. */
static bool open_root(struct observed *o)
{
    struct stat st;
    o->notify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (o->notify < 0 || stat(o->root, &st) != 0)
        return false;
    int watch = inotify_add_watch(o->notify, o->root, OF_FOLDER | OF_ITSELF);
    if (watch < 0)
        return false;
    keep_node(o, watch, "");
    return true;
}

/* Reads the folders below the root, which is watched already. */
static void begin_reading(struct observed *o)
{
    o->reading = opendir(o->root);
    if (o->reading != NULL)
        o->read = zeroed(sizeof *o->read + 1);
}

void do_watch(uint32_t stream, struct fields *f)
{
    unsigned options;
    struct observed *o = zeroed(sizeof *o);
    o->notify = -1;
    o->last = &o->first;
    if (!field_path(field_take(f), o->root, sizeof o->root)) {
        send_invalid(stream, "an absolute path is needed");
    } else if (!field_options(field_take(f), WATCH_OPTIONS, &options)) {
        send_error(stream, "unsupported", "an option this agent does not know", 0);
    } else if (!open_root(o)) {
        send_errno(stream, "the path cannot be watched", errno);
    } else {
        o->recursive = (options & WATCH_RECURSIVE) != 0;
        if (o->recursive)
            begin_reading(o);
        struct stream *s = stream_new(stream, &OBSERVED, o);
        if (s != NULL) {
            stream_watch(s, o->notify, CHANNEL_EVENTS);
            return;
        }
    }
    observe_close(&(struct stream){.state = o});
}
