#include "kept.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../guest/fields.h"

enum { MOST = 64, WAITERS = 256, END_LIMIT = 256, TOLD_LIMIT = 60 * 1024, LEAST_GRANT = 16 * 1024 };
enum { CHANNEL_OUT = 1, CHANNEL_ERR = 2 };

/* Slot 0 is the console. */
static struct kept {
    bool is_used;
    uint32_t number;
    /* 0 when it has ended. */
    uint32_t stream;
    struct log logs[2];
    uint32_t owed[2];
    uint8_t end[END_LIMIT];
    size_t end_length;
    /* Who is told of its start. */
    struct client *asking;
    uint32_t asked_by;
} kept[MOST + 1];

static struct waiter {
    struct client *client;
    uint32_t id;
    uint32_t number;
    uint64_t from[2];
} waiters[WAITERS];
/* Something came since the waiters were last told. */
static bool has_news;

bool kept_open(void)
{
    kept[0].is_used = true;
    kept[0].logs[1].file = -1;
    mkdir("programs", 0700);
    return log_open(&kept[0].logs[0], "console.log");
}

struct log *kept_console(void)
{
    has_news = true;
    return &kept[0].logs[0];
}

int kept_running(void)
{
    int count = 0;
    for (int slot = 1; slot <= MOST; slot++)
        count += kept[slot].is_used && kept[slot].stream != 0;
    return count;
}

static struct kept *find(uint32_t number)
{
    for (int slot = 0; slot <= MOST; slot++)
        if (kept[slot].is_used && kept[slot].number == number)
            return &kept[slot];
    return NULL;
}

static struct kept *find_by_stream(uint32_t stream)
{
    for (int slot = 1; slot <= MOST; slot++)
        if (kept[slot].is_used && kept[slot].stream == stream)
            return &kept[slot];
    return NULL;
}

static void name_file(char *name, size_t size, uint32_t number, const char *kind)
{
    snprintf(name, size, "programs/%" PRIu32 ".%s", number, kind);
}

static void discard(struct kept *k)
{
    static const char *const KINDS[] = {"out", "err", "end", "json"};
    char name[64];
    for (size_t kind = 0; kind < sizeof KINDS / sizeof *KINDS; kind++) {
        name_file(name, sizeof name, k->number, KINDS[kind]);
        unlink(name);
    }
    log_close(&k->logs[0]);
    log_close(&k->logs[1]);
    k->is_used = false;
}

/* The one that was started first of those that have ended makes room. */
static struct kept *free_slot(void)
{
    struct kept *oldest = NULL;
    for (int slot = 1; slot <= MOST; slot++) {
        if (!kept[slot].is_used)
            return &kept[slot];
        if (kept[slot].stream == 0 && (oldest == NULL || kept[slot].number < oldest->number))
            oldest = &kept[slot];
    }
    if (oldest != NULL)
        discard(oldest);
    return oldest;
}

struct stream *kept_start(struct client *client, uint32_t id, uint32_t number, const char **why_not)
{
    char out[64], err[64];
    name_file(out, sizeof out, number, "out");
    name_file(err, sizeof err, number, "err");
    *why_not = find(number) != NULL ? "exists" : NULL;
    struct kept *k = *why_not == NULL ? free_slot() : NULL;
    struct stream *s = k != NULL ? stream_new(NULL, 0) : NULL;
    if (s == NULL) {
        *why_not = *why_not ? *why_not : "busy";
        return NULL;
    }
    *k = (struct kept){.is_used = true, .number = number, .asking = client, .asked_by = id, .logs[1].file = -1};
    if (!log_open(&k->logs[0], out) || !log_open(&k->logs[1], err)) {
        discard(k);
        stream_close(s);
        *why_not = "io";
        return NULL;
    }
    k->stream = s->id;
    s->is_kept = s->is_program = true;
    return s;
}

const struct stream *kept_find(uint32_t number)
{
    struct kept *k = number > 0 ? find(number) : NULL;
    return k != NULL ? stream_find(k->stream) : NULL;
}

static bool has_news_for(const struct waiter *w, const struct kept *k)
{
    return k->end_length > 0 || k->logs[0].total > w->from[0] || k->logs[1].total > w->from[1];
}

static void put_log(struct client *client, const struct log *log, uint64_t from)
{
    static uint8_t bytes[TOLD_LIMIT];
    size_t length = log->file >= 0 ? log_read(log, &from, bytes, sizeof bytes) : 0;
    put_number(&client->queue, (int64_t)from);
    put_field(&client->queue, bytes, length);
}

static void tell(const struct waiter *w, const struct kept *k)
{
    size_t mark = frame_begin(&w->client->queue, REPLY, w->id);
    put_log(w->client, &k->logs[0], w->from[0]);
    put_log(w->client, &k->logs[1], w->from[1]);
    put_field(&w->client->queue, k->end, k->end_length);
    frame_end(&w->client->queue, mark);
}

bool kept_tell(struct client *client, uint32_t id, uint32_t number, uint64_t from_out, uint64_t from_err)
{
    struct waiter waiter = {client, id, number, {from_out, from_err}};
    const struct kept *k = find(number);
    if (k == NULL)
        return false;
    if (has_news_for(&waiter, k)) {
        tell(&waiter, k);
        return true;
    }
    for (int slot = 0; slot < WAITERS; slot++) {
        if (waiters[slot].client != NULL)
            continue;
        waiters[slot] = waiter;
        return true;
    }
    client_send_error(client, id, "busy", "too many wait for output");
    return true;
}

bool kept_cancel(struct client *client, uint32_t id)
{
    for (int slot = 0; slot < WAITERS; slot++) {
        if (waiters[slot].client != client || waiters[slot].id != id)
            continue;
        waiters[slot].client = NULL;
        client_send_error(client, id, "cancelled", "the request was given up");
        return true;
    }
    return false;
}

void kept_forget(const struct client *client)
{
    for (int slot = 0; slot < WAITERS; slot++)
        if (waiters[slot].client == client)
            waiters[slot].client = NULL;
    for (int slot = 1; slot <= MOST; slot++)
        if (kept[slot].asking == client)
            kept[slot].asking = NULL;
}

void kept_notify(void)
{
    for (int slot = 0; has_news && slot < WAITERS; slot++) {
        struct waiter *w = &waiters[slot];
        const struct kept *k = w->client != NULL ? find(w->number) : NULL;
        if (w->client == NULL || (k != NULL && !has_news_for(w, k)))
            continue;
        if (k != NULL)
            tell(w, k);
        else
            client_send_error(w->client, w->id, "not-found", "the program is not kept any more");
        w->client = NULL;
    }
    has_news = false;
}

/* For whoever asks after the machine has ended, too. */
static void write_end(const struct kept *k)
{
    char name[64];
    name_file(name, sizeof name, k->number, "end");
    int file = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0)
        return;
    if (write(file, k->end, k->end_length) != (ssize_t)k->end_length)
        unlink(name);
    close(file);
}

static const char *take_end(struct kept *k, struct stream *s, const struct frame *frame)
{
    struct fields fields;
    if (frame->length == 0 || frame->length > END_LIMIT || !fields_open(&fields, frame->payload, frame->length))
        return "an end of a program that cannot be read";
    memcpy(k->end, frame->payload, frame->length);
    k->end_length = frame->length;
    k->stream = 0;
    write_end(k);
    stream_close(s);
    return NULL;
}

/* It was never started, and its client is told why. */
static void take_refusal(struct kept *k, struct stream *s, const struct frame *frame)
{
    if (k->asking != NULL)
        client_send(k->asking, ERROR, k->asked_by, frame->payload, frame->length);
    discard(k);
    stream_close(s);
}

static const char *take_output(struct kept *k, struct stream *s, const struct frame *frame)
{
    uint8_t channel = frame->length > 0 ? frame->payload[0] : 0;
    if (channel != CHANNEL_OUT && channel != CHANNEL_ERR)
        return "data on a channel that has none";
    size_t length = frame->length - 1;
    if (!stream_spend(s, channel, length))
        return "data beyond its credit";
    log_add(&k->logs[channel - CHANNEL_OUT], frame->payload + 1, length);
    uint32_t *owed = &k->owed[channel - CHANNEL_OUT];
    *owed += (uint32_t)length;
    if (*owed >= LEAST_GRANT) {
        stream_hold(s, channel, *owed);
        *owed = 0;
    }
    return NULL;
}

const char *kept_take(struct stream *s, const struct frame *frame)
{
    struct kept *k = find_by_stream(s->id);
    has_news = true;
    if (frame->kind == DATA)
        return take_output(k, s, frame);
    if (frame->kind == REPLY)
        return take_end(k, s, frame);
    if (frame->kind == ERROR)
        take_refusal(k, s, frame);
    else if (frame->kind == EVENT && k->asking != NULL) {
        client_send(k->asking, REPLY, k->asked_by, frame->payload, frame->length);
        k->asking = NULL;
    }
    return NULL;
}
