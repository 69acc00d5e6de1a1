"""What frames are, between the host and the server, and between the server and an interpreter."""

VERSION = 1

# From the host.
HELLO, RUN, INTERRUPT, KILL = range(4)
# To the host; RESULT and DONE come from the interpreter.
STDOUT, STDERR, RESULT, DONE, FILES = range(1, 6)

# From the interpreter to the server alone: from now on an interrupt finds the code running.
STARTED = 6

MOST_REQUEST = 32 << 20
MOST_ANSWER = 32 << 20
