/* The memory of the program, as somebody else can copy it while it runs. */
#ifndef VMFORK_MEMORY_H
#define VMFORK_MEMORY_H

#include <stdbool.h>
#include <sys/types.h>

enum { HELD_LIMIT = 2, OPENED_LIMIT = 3 };

struct memory {
    /* The program opens what is needed as it starts, and sends it here; -1 where it does not. */
    int line;
    /* /proc/PID/mem and pagemap, and a userfaultfd of the process; -1 for each that is not there. */
    int opened[OPENED_LIMIT];
    /* The files that its memory is mapped from, lowest first. They live as long as it does, whoever removes them. */
    int held[HELD_LIMIT];
    int held_count;
};

/* The folder of /proc that belongs to this process, and so to the program that it becomes, waits at the other end of
 * `line`. */
void memory_lend_folder(int line);
/* What the program has sent is ours. */
void memory_receive(struct memory *memory);
/* All that there is of it is sent; the answer's number has a bit for each, in the order of `opened` and `held`. What
 * the program could not open itself is opened here. False when the other side is gone. */
bool memory_answer(struct memory *memory, int socket, pid_t program);

#endif
