/* What HELLO reports. PROTOCOL can be set from the compiler's command line, so a test can build an older agent. */
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

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

#endif
