/* What is open: requests that take more than one frame. */
#ifndef VMFORK_STREAM_H
#define VMFORK_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

enum { CHANNEL_CONTENT = 0, CHANNEL_STDOUT = 1, CHANNEL_STDERR = 2, CHANNEL_ARGUMENTS = 3, CHANNELS = 4 };
enum { FIRST_CREDIT = 65536, LARGEST_CHUNK = 65536, MOST_OWED = FIRST_CREDIT / 4 };

struct stream;

/* How a stream lives. `stream_new` opens it under the number the host picked. Each frame for that number is given to
 * its kind; readiness of its descriptors is noted by `ready`; and `pump` does the work, in every round of the loop,
 * until it closes the stream behind a REPLY or an ERROR. The host may close it too, by KILL or by going away.
 *
 * Credit bounds what is under way. `credit[channel]` is what the host still allows us to send there: a pump that finds
 * none returns, and the process that writes stands still in its pipe. `granted` is what we still allow the host on
 * the channel it sends on; `stream_grant` gives back what was used up. */
struct stream_kind {
    /* Counted apart: tunnels never take the places of programs and files. */
    bool is_tunnel;
    /* The one channel on which the host may send. */
    uint8_t channel;
    /* Bytes for it, already within the credit; NULL where the host may send none. */
    void (*data)(struct stream *s, const uint8_t *bytes, size_t length);
    void (*eof)(struct stream *s);
    /* Does a piece of what can be done without waiting; true when something was. May close the stream. */
    bool (*pump)(struct stream *s);
    /* Readiness of a descriptor that was registered with `stream_watch`. */
    void (*ready)(struct stream *s, uint8_t channel);
    /* The child that `stream.child` names has ended, with this status and use of wait4(2). */
    void (*child_ended)(struct stream *s, int status, const struct rusage *used);
    /* Lets go of everything: processes killed, descriptors closed, temporary files gone. */
    void (*close)(struct stream *s);
};

struct stream {
    /* The number that the host picked; 0 once its client has left it. */
    uint32_t id;
    /* No other stream has or had it. */
    uint64_t number;
    const struct stream_kind *kind;
    void *state;
    /* What the host allows us to send, and what we allow it to. */
    uint64_t credit[CHANNELS];
    uint32_t granted;
    /* Was used up, and the host is not told yet. */
    uint32_t owed;
    /* 0 where there is none, or it has ended: its number may be another's by then. */
    pid_t child;
};

void streams_open(int epoll);
/* NULL, and `busy` is answered, when too many are open. */
struct stream *stream_new(uint32_t id, const struct stream_kind *kind, void *state);
/* NULL where no such stream is open. */
struct stream *stream_find(uint32_t id);
/* Of those that a client has left, by `number`; NULL where there is none. */
struct stream *stream_find_left(uint64_t number);
/* It was left, and is the present client's under this number, with the credit that a new one has. */
void stream_take(struct stream *s, uint32_t id);
/* Of several, any; NULL where there is none. */
struct stream *stream_of_kind(const struct stream_kind *kind);
/* `act` is called with each that is open, and may close it. */
void streams_each(const struct stream_kind *kind, void (*act)(struct stream *s));
void stream_close(struct stream *s);
/* Everything the present client had open or was owed is dropped. */
void forget_client(void);
/* As `forget_client`, but what `stays` is left: it lives on, and waits for a client that takes it. */
void forget_client_but(bool (*stays)(const struct stream *s));
bool streams_pump(void);
/* Tells the stream whose child it was, if one is open. */
void streams_child_ended(pid_t pid, int status, const struct rusage *used);

/* Events of `fd` reach the stream's `ready` with `channel`; edge-triggered, so one event a change. A file, or a device
 * that is always ready, has none. */
void stream_watch(struct stream *s, int fd, uint8_t channel);
/* Whether room to write is an event of a descriptor that is watched, as it is at first. A Unix socket tells of room
 * whenever its other side reads, which would be an event for each message. */
void stream_watch_room(struct stream *s, int fd, uint8_t channel, bool is_event);
/* `token` is what epoll gave back. Events of a stream that is gone are ignored. */
void streams_event(uint64_t token);

/* How much may be sent on the channel now, no more than a chunk. */
size_t stream_allowance(const struct stream *s, uint8_t channel);
/* Reads at most `limit` bytes from `fd` straight into a DATA frame and charges the credit. Returns as read(2) does. */
long stream_send_from(struct stream *s, uint8_t channel, int fd, size_t limit);
void stream_send(struct stream *s, uint8_t channel, const void *bytes, size_t length);
/* The bytes that came were used up: the host may send as many more. Of one that was left, nobody is told. */
void stream_grant(struct stream *s, size_t length);
/* The same, told with what is sent next on the stream, at a quarter of the first credit, or when nothing else happens.
 */
void stream_grant_late(struct stream *s, size_t length);
/* Whether any is owed credit, and tells it. */
bool streams_owe(void);
void streams_settle(void);

#endif
