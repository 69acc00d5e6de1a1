/* What is said over a keeper's sockets: one message of a SOCK_SEQPACKET socket each, drawn in README.md. */
#ifndef VMFORK_MESSAGE_H
#define VMFORK_MESSAGE_H

#include <stdbool.h>
#include <stdint.h>

enum { TOKEN_SIZE = 16, PASSED_LIMIT = 3 };

enum request { DETACH = 1, TAKE = 2, TAKEN = 3 };
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

/* The answer is on its way, with descriptors where `count` > 0. Does not wait; false when the other side is gone. */
bool send_answer(int socket, enum answer kind, uint32_t number, const int *passed, int count);

void close_all(int *descriptors, int count);

#endif
