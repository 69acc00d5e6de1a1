/* The error codes of the protocol that stand for an errno. */
#ifndef VMFORK_ERRORS_H
#define VMFORK_ERRORS_H

const char *error_code(int error);

#endif
