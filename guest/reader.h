/* A reader for a named pipe that has none. */
#ifndef VMFORK_READER_H
#define VMFORK_READER_H

#include <stdbool.h>
#include <sys/types.h>

struct reader {
    pid_t child;
    /* Readable once there is news. -1 while nobody is waited for. */
    int news;
};

/* Somebody is waited for who opens the pipe to read it. False with errno set. */
bool reader_await(struct reader *r, const char *path);
/* 0: somebody reads the pipe, which stays open for writing until `reader_forget`, so that the reader stays. EAGAIN:
 * nobody reads it yet. Else why nobody can be waited for. */
int reader_news(const struct reader *r);
/* Nobody is waited for any more. */
void reader_forget(struct reader *r);

#endif
