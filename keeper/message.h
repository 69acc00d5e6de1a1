/* What is said over a keeper's sockets: one message of a SOCK_SEQPACKET socket each, drawn in README.md. */
#ifndef VMFORK_MESSAGE_H
#define VMFORK_MESSAGE_H

#include <stdbool.h>
#include <stdint.h>

enum { TOKEN_SIZE = 16, PASSED_LIMIT = 3, ANSWERED_LIMIT = 5 };

enum request { DETACH = 1, TAKE = 2, TAKEN = 3, MEMORY = 4 };
enum answer { HELLO = 1, OK = 2, REFUSED = 3, BUSY = 4, BAD = 5 };

struct request_message {
    uint8_t kind;
    uint8_t token[TOKEN_SIZE];
    uint64_t ttl_ms;
} __attribute__((packed));

/* A request as it came. `passed` are descriptors of the receiver's own. */
struct received {
    struct request_message request;
    int passed[PASSED_LIMIT];
    int passed_count;
};

enum outcome { NOTHING, GONE, MALFORMED, RECEIVED };

/* Does not wait. MALFORMED has closed what was passed. */
enum outcome receive_request(int socket, struct received *into);

/* The answer is on its way, with descriptors where `count` > 0, ANSWERED_LIMIT at most. Does not wait; false when the
 * other side is gone. */
bool send_answer(int socket, enum answer kind, uint32_t number, const int *passed, int count);

/* One byte and some descriptors, PASSED_LIMIT at most. Does not wait. */
bool send_opened(int socket, uint8_t sign, const int *passed, int count);
/* What `send_opened` sent: how many descriptors; -1 where nothing came, or something else. Does not wait. */
int receive_opened(int socket, uint8_t *sign, int *passed);

void close_all(int *descriptors, int count);

#endif
