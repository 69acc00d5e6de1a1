"""What frames are, between the host and the server, and between the server and an interpreter."""

VERSION = 2

# From the host. AGAIN is a RUN of other code, in the same context with the same environment.
HELLO, RUN, INTERRUPT, AGAIN = range(4)
# To the host; RESULT, DONE and VALUE come from the interpreter.
STDOUT, STDERR, RESULT, DONE, FILES, VALUE = range(1, 7)

# From the server to the interpreter: here is the host's line; it is wanted back.
LEND, RETURN = 10, 11
# From the interpreter: here it is, with what was read of it and is the server's to answer.
RETURNED = 12

MOST_REQUEST = 32 << 20
MOST_ANSWER = 32 << 20
