/* What HELLO reports, and what a test can build another agent with: PROTOCOL and OWED_MS can be set from the compiler's
 * command line. */
#ifndef VMFORK_VERSION_H
#define VMFORK_VERSION_H

#define AGENT_VERSION "0.1.0"

#ifndef PROTOCOL
#define PROTOCOL 4
#endif

#if PROTOCOL >= 4
#define CAPABILITIES                                                                                                   \
    "exec,files,adopt,clock,quiesce,shutdown,notify,grown,trees,terminal,limits,ports,reverse,watch,names,left,asks,"  \
    "net,disk"
#elif PROTOCOL == 3
#define CAPABILITIES "exec,files,adopt,clock,quiesce,shutdown,notify,grown,trees"
#elif PROTOCOL == 2
#define CAPABILITIES "exec,files,adopt,clock,quiesce,shutdown,notify"
#else
#define CAPABILITIES "exec,files,adopt,clock,quiesce,shutdown"
#endif

/* How long nothing has to happen before the host is told that bytes of a connection were used up. It is told before,
 * with what the program answers: told by itself, it cost a call that goes to and fro an eighth of its time. */
#ifndef OWED_MS
#define OWED_MS 10
#endif

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

#endif
