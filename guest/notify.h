/* The programs that are told of a new generation. */
#ifndef VMFORK_NOTIFY_H
#define VMFORK_NOTIFY_H

/* The folder is there in which they bind their sockets, open to every user. For an agent whose machine is its own. */
void watchers_make(void);

#endif
